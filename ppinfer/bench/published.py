"""Published figures beside what the planner predicts for them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ppinfer.bench.plots import Line, Panel
from ppinfer.planner.published.calibrate import FITTED_COLUMNS, SYSTEMS, Judged, judge
from ppinfer.planner.published.figures import PIPELINE, Cell, Figures, load_figures
from ppinfer.planner.published.ours import CHANGES, Ours, compare

OURS = "ppinfer"
_COLORS = {"Pipeline": "#4c78a8", "Hugging Face": "#9a9a9a", OURS: "#f58518"}

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Findings:
    """What was found: ``judged`` in the order of the systems, ``ours`` in that of the cells."""

    figures: Figures
    judged: tuple[Judged, ...]
    ours: tuple[Ours, ...]


def find(progress: Progress) -> Findings:
    """Fit both systems, and run ppinfer's schedule for every cell."""
    figures = load_figures()
    cells = figures.cells
    judged = []
    for index, system in enumerate(SYSTEMS):
        progress("fit", index, len(SYSTEMS))
        judged.append(judge(system, figures))
    pipeline = next(found for found in judged if found.calibrated.system.name == PIPELINE)
    ours = []
    for index, cell in enumerate(cells):
        progress("simulate", index, len(cells))
        ours.append(compare(pipeline.calibrated, cell))
    return Findings(figures, tuple(judged), tuple(ours))


def by_table(figures: Figures) -> list[list[Cell]]:
    """The cells of each published table."""
    return [list(cells) for _, cells in groupby(figures.cells, key=table_name)]


def table_name(cell: Cell) -> str:
    return f"{cell.model.name}, {cell.dtype}"


def workload(cell: Cell) -> str:
    """Prompt and new tokens."""
    return f"{cell.prompt}, {cell.new}"


def plain(found: Findings) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "source": found.figures.source,
        "fitted_columns": FITTED_COLUMNS,
        "systems": {
            judged.calibrated.system.name: {
                "fitted_parameters": judged.calibrated.system.fitted,
                "parameters": judged.calibrated.parameters,
                "fitted": judged.fitted,
                "held_out": judged.held_out,
                "leave_one_column_out": judged.without,
                "memory_told_right": judged.verdicts,
            }
            for judged in found.judged
        },
        "cells": [
            _cell(found, cell, ours)
            for cell, ours in zip(found.figures.cells, found.ours, strict=True)
        ],
    }


def _cell(found: Findings, cell: Cell, ours: Ours) -> dict[str, Any]:
    systems = {}
    for judged in found.judged:
        calibrated = judged.calibrated
        figure, fits = cell.figures[calibrated.system.name], calibrated.fits(cell)
        systems[calibrated.system.name] = {
            "published": figure,
            "predicted": calibrated.rate(cell) if fits else None,
            "error": calibrated.error(cell) if figure is not None else None,
            "peak": calibrated.system.peak(cell),
        }
    return {
        "model": cell.model.name,
        "dtype": cell.dtype,
        "prompt": cell.prompt,
        "new": cell.new,
        "batch": cell.batch,
        "micro_batch": cell.micro_batch,
        **systems,
        OURS: {
            "predicted": ours.rate,
            "at_once": ours.at_once,
            "micro_batches": ours.micro_batches,
            "chunk": ours.chunk,
            "layers": ours.layers,
            "after_each_change": dict(zip(CHANGES, ours.rates, strict=False)),
        },
    }


def panels(found: Findings) -> list[Panel]:
    """One for each table and workload: published solid, predicted dashed."""
    return [
        _panel(found, list(row))
        for cells in by_table(found.figures)
        for _, row in groupby(cells, key=workload)
    ]


def _panel(found: Findings, row: list[Cell]) -> Panel:
    lines = []
    for judged in found.judged:
        calibrated = judged.calibrated
        title, name = calibrated.system.title, calibrated.system.name
        figures = [(x, cell.figures[name]) for x, cell in enumerate(row)]
        predicted = [
            (x, calibrated.rate(cell) if calibrated.fits(cell) else None)
            for x, cell in enumerate(row)
        ]
        lines.append(_line(title, figures, _COLORS[title]))
        lines.append(_line(f"{title}, predicted", predicted, _COLORS[title], "--"))
    own = [(x, found.ours[found.figures.cells.index(cell)].rate) for x, cell in enumerate(row)]
    lines.append(_line(f"{OURS}'s schedule, predicted", own, _COLORS[OURS], "--"))
    first = row[0]
    return Panel(
        f"{table_name(first)}: {first.prompt} prompt, {first.new} new tokens",
        "batch(micro-batch)",
        "output tokens/s",
        lines,
        ticks=[cell.column for cell in row],
    )


def _line(name: str, points: list[tuple[int, float | None]], color: str, style: str = "-") -> Line:
    known = [(x, y) for x, y in points if y is not None]
    return Line(name, [x for x, _ in known], [y for _, y in known], color=color, style=style)
