"""What ``ppinfer bench throughput`` shows: a comparison at a glance, and every figure. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ppinfer.bench.records import Cell, Comparison
from ppinfer.bench.tables import Table, megabytes, number, percent, with_range

_SETTINGS = {
    "num_micro_batches": "{} micro-batches",
    "micro_batch_size": "micro-batch size {}",
    "max_prefill_tokens": "chunks of {} tokens",
    "threads": "{} threads a stage",
    "comm": "comm {}",
}


def tables(comparisons: Sequence[Comparison]) -> list[Table]:
    found = []
    for comparison in comparisons:
        found.append(_glance(comparison))
        if any(cell.is_ok for cell in comparison.cells):
            found += [_rates(comparison), _processes(comparison)]
    return found


def _glance(comparison: Comparison) -> Table:
    """Rows by shapes, as the tables of the system that this one re-creates."""
    cells = comparison.cells
    shapes = list(dict.fromkeys(cell.shape for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))
    by_place = {(cell.row, cell.shape): cell for cell in cells}
    table = Table(
        f"{comparison.model}, {comparison.dtype}: output tokens/s (times Hugging Face)",
        ["batch x prompt x new", *shapes],
    )
    for row in rows:
        table.rows.append([row, *(_short(by_place[row, shape]) for shape in shapes)])
    firsts = [by_place[rows[0], shape] for shape in shapes]
    for name, rates in (
        ("kernels' ceiling", [cell.ceiling for cell in firsts]),
        ("physical limit", [cell.limit for cell in firsts]),
    ):
        if any(rates):
            table.rows.append([name, *("" if rate is None else number(rate) for rate in rates)])
            if len(table.rows) == len(rows) + 1:
                table.breaks.append(len(rows))
    if comparison.rates is not None:
        table.notes.append(
            f"Measured here: {comparison.rates.bandwidth / 1e9:.0f} GB/s read, "
            f"{comparison.rates.peak / 1e9:,.0f} GFLOP/s in {comparison.dtype}."
        )
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.status in ("oom", "failed", "timeout"):
            reasons.setdefault(f"{status(cell)}, {cell.row}: {cell.why}", []).append(cell.shape)
    table.notes += [f"{reason} ({', '.join(where)})" for reason, where in reasons.items()]
    if len(comparison.groups) > 1:
        said = "; ".join(", ".join(group) for group in comparison.groups)
        table.notes.append(
            f"Not all rows fit in memory together; those took turns that do: {said}."
        )
    return table


def _short(cell: Cell) -> str:
    if not cell.is_ok:
        return status(cell)
    rate = number(cell.tokens_per_second.median)
    return rate if cell.ratio is None else f"{rate} ({cell.ratio.median:.2f}x)"


def status(cell: Cell) -> str:
    """Why there is no figure, in a word or two."""
    if cell.status == "skipped":
        return f"skipped ({cell.why})" if cell.why.startswith("~") else "skipped"
    return {"oom": "OOM", "timeout": "timed out", "ok": "…"}.get(cell.status, "failed")


def _rates(comparison: Comparison) -> Table:
    """Throughput in full, of the cells that were measured."""
    columns = ["tokens/s (range)", "x HF (range)", "prefill/s", "decode/s", "ceiling", "limit"]
    table = _by_shape(
        comparison,
        "rates, and their share of the ceiling and of the limit",
        columns,
        lambda cell: [
            with_range(cell.tokens_per_second),
            "" if cell.ratio is None else with_range(cell.ratio),
            number(cell.prefill_rate.median),
            number(cell.decode_rate.median),
            percent(cell.share_of(cell.ceiling)),
            percent(cell.share_of(cell.limit)),
        ],
    )
    table.notes = _notes(comparison)
    return table


def _processes(comparison: Comparison) -> Table:
    """What a user waits for, and what the processes took for it."""
    return _by_shape(
        comparison,
        "latency and processes",
        ["first token s", "ms a token p50", "p99", "peak MB a process", "stages busy"],
        lambda cell: [
            f"{cell.median('first_token_seconds'):.2f}",
            f"{cell.median('token_p50') * 1e3:.1f}",
            f"{cell.median('token_p99') * 1e3:.1f}",
            megabytes(cell.stage_median("peak_bytes")),
            " ".join(percent(share) for share in cell.stage_median("busy")),
        ],
    )


def _by_shape(
    comparison: Comparison, what: str, columns: list[str], figures: Callable[[Cell], list[str]]
) -> Table:
    title = f"{comparison.model}, {comparison.dtype}: {what}"
    table = Table(title, ["shape", "row", *columns], labels=2)
    last = None
    for cell in comparison.cells:
        if not cell.is_ok:
            continue
        if last not in (None, cell.shape):
            table.breaks.append(len(table.rows))
        table.rows.append([cell.shape if cell.shape != last else "", cell.row, *figures(cell)])
        last = cell.shape
    return table


def _notes(comparison: Comparison) -> list[str]:
    """What engines chose, and whether anything disturbed the runs."""
    notes = []
    for row in dict.fromkeys(cell.row for cell in comparison.cells):
        said = [choice(c) for c in comparison.cells if c.row == row and c.is_ok and not c.is_hf]
        notes += [f"{row}: {text}" for text in dict.fromkeys(said)]
    if comparison.repeated_turns:
        notes.append(
            f"{comparison.repeated_turns} turns were done again, because other processes or the "
            "hypervisor took more than 5% of the cores meanwhile."
        )
    runs = [run for cell in comparison.cells for run in cell.runs]
    disturbed = [run for run in runs if run.is_disturbed]
    if disturbed:
        most = max(run.other_cpu + run.stolen_cpu for run in disturbed)
        notes.append(
            f"{len(disturbed)} of {len(runs)} counted runs were disturbed: other processes or the "
            f"hypervisor took up to {most:.0%} of the cores."
        )
    if any(run.cached_tokens for run in runs):
        notes.append("Some prompt tokens came out of a cache; these figures are worthless.")
    return notes


def choice(cell: Cell) -> str:
    """What was asked of the engine and what it decided, in words."""
    chosen = cell.chosen
    words = []
    if chosen.get("layers"):
        words.append("layers " + "+".join(map(str, chosen["layers"])))
    for key, name in _SETTINGS.items():
        if chosen.get(key) is not None:
            words.append(name.format(chosen[key]))
    return "; ".join([", ".join(words), *chosen.get("choices", ()), *chosen.get("notes", ())])
