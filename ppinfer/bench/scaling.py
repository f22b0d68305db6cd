"""How throughput changes with pipeline size and number of micro-batches, and why. No torch."""

from __future__ import annotations

from ppinfer.bench.plots import Line, Panel
from ppinfer.bench.procfs import cores
from ppinfer.bench.records import Cell, Comparison
from ppinfer.bench.tables import Table, number, percent
from ppinfer.bench.throughput_table import status


def tables(comparison: Comparison) -> list[Table]:
    """Output tokens/s, and how busy stages were, by stages (down) and micro-batches (across)."""
    stages = list(dict.fromkeys(cell.stages for cell in comparison.cells))
    counts = list(dict.fromkeys(cell.micro_batches for cell in comparison.cells))
    places = {(cell.stages, cell.micro_batches): cell for cell in comparison.cells}
    shape = comparison.cells[0].shape
    title = f"{comparison.model}, {comparison.dtype}, {shape}"
    names = ["auto" if count is None else str(count) for count in counts]
    rates = Table(f"{title}: output tokens/s by micro-batches", ["stages", *names])
    busy = Table(f"{title}: share of the time that stages computed", ["stages", *names])
    steps = Table(f"{title}: steps of a stage, prefill and decode", ["stages", *names])
    for size in stages:
        row = [places[size, count] for count in counts]
        rates.rows.append([str(size), *map(_rate, row)])
        busy.rows.append([str(size), *map(_busy, row)])
        steps.rows.append([str(size), *map(_steps, row)])
    rates.notes = explain(comparison)
    return [rates, busy, steps]


def panels(comparison: Comparison) -> list[Panel]:
    """A line a pipeline size; the engine's own choice is left out, having no place on the axis."""
    lines = []
    for size in dict.fromkeys(cell.stages for cell in comparison.cells):
        cells = [c for c in comparison.cells if c.stages == size and c.is_ok and c.micro_batches]
        spreads = [cell.tokens_per_second for cell in cells]
        if cells:
            lines.append(
                Line(
                    "1 process" if size == 1 else f"{size} stages",
                    [cell.micro_batches or 0 for cell in cells],
                    [spread.median for spread in spreads],
                    [spread.low for spread in spreads],
                    [spread.high for spread in spreads],
                )
            )
    shape = comparison.cells[0].shape
    title = f"{comparison.model}, {comparison.dtype}, {shape}"
    return [Panel(title, "micro-batches", "output tokens/s", lines, whole=True)]


def explain(comparison: Comparison) -> list[str]:
    """What the figures themselves say about each way down from the best cell."""
    cells = [cell for cell in comparison.cells if cell.is_ok]
    if not cells:
        return []
    top = max(cells, key=lambda cell: cell.tokens_per_second.median)
    best = top.tokens_per_second.median
    notes = [f"Best: {top.row} with {number(best)} tokens/s."]
    for cell in cells:
        lost = 1 - cell.tokens_per_second.median / best
        if cell is top or lost < 0.05:
            continue
        notes.append(f"{cell.row}: {lost:.0%} less; {'; '.join(_reasons(cell, top))}.")
    return notes


def _reasons(cell: Cell, top: Cell) -> list[str]:
    busy, count = cell.stage_median("busy"), cell.micro_batches
    shown = " and ".join(map(percent, busy))
    reasons = []
    if count is not None and count < cell.stages:
        noun = "micro-batch" if count == 1 else "micro-batches"
        reasons.append(f"{count} {noun} cannot keep {cell.stages} stages busy at once")
    if busy and max(busy) - min(busy) > 0.1:
        reasons.append(f"stages are uneven ({shown} busy)")
    elif busy:
        reasons.append(f"stages were {shown} busy")
    if cell.stages > cores():
        reasons.append(f"{cell.stages} stages take turns on {cores()} cores")
    mine, best = max(cell.stage_median("steps")), max(top.stage_median("steps"))
    if mine > 1.2 * best:
        reasons.append(
            f"{mine:.0f} steps instead of {best:.0f}, each of which reads the stage's weights"
        )
    return reasons


def _rate(cell: Cell) -> str:
    return number(cell.tokens_per_second.median) if cell.is_ok else status(cell)


def _busy(cell: Cell) -> str:
    return " ".join(map(percent, cell.stage_median("busy"))) if cell.is_ok else ""


def _steps(cell: Cell) -> str:
    return f"{max(cell.stage_median('steps')):.0f}" if cell.is_ok else ""
