"""One request at a time, and decoding against context. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ppinfer.bench.cases import Row, Shape
from ppinfer.bench.named import Subject
from ppinfer.bench.plots import Line, Panel
from ppinfer.bench.records import Cell, Comparison
from ppinfer.bench.stats import Spread, fit_line
from ppinfer.bench.tables import Table, number
from ppinfer.bench.throughput import Notice, Protocol, compare_rows
from ppinfer.bench.throughput_table import choice, status

CONTEXT_NEW = 24
"""Tokens decoded at each context length."""


@dataclass
class Latency:
    """Requests of the prompt lengths asked for, and decoding after ever longer prompts."""

    requests: Comparison | None = None
    contexts: Comparison | None = None
    names: list[str] = field(default_factory=list)


def measure_latency(
    subject: Subject,
    dtype: str,
    rows: Sequence[Row],
    prompts: Sequence[int],
    new: int,
    contexts: Sequence[int],
    protocol: Protocol,
    notice: Notice,
) -> Iterator[Latency]:
    """The rows take turns as in the comparison of throughput, with a batch of one."""
    found = Latency()
    shapes = [Shape(1, prompt, new) for prompt in prompts]
    for found.requests in compare_rows(subject, dtype, shapes, rows, protocol, notice):
        yield found
    longest = [context - CONTEXT_NEW for context in contexts]
    shapes = [Shape(1, prompt, CONTEXT_NEW) for prompt in longest if prompt > 0]
    if shapes:
        for found.contexts in compare_rows(subject, dtype, shapes, rows, protocol, notice):
            yield found


def tables(found: Latency) -> list[Table]:
    made = []
    if found.requests is not None:
        title = f"{found.requests.model}, {found.requests.dtype}: one request at a time"
        made.append(_table(title, "prompt", found.requests, _prompt))
    if found.contexts is not None:
        title = f"{found.contexts.model}, {found.contexts.dtype}: decoding against context"
        table = _table(title, "context", found.contexts, _context)
        table.notes = [*_growth(found.contexts), *table.notes]
        made.append(table)
    return made


def panels(found: Latency) -> list[Panel]:
    """Decode time a token, and time to first token, by context."""
    comparison = found.contexts or found.requests
    assert comparison is not None
    label = _context if found.contexts is not None else _prompt
    title = f"{comparison.model}, {comparison.dtype}"
    return [
        Panel(
            f"{title}: decoding, one request",
            "context, tokens",
            "ms a token (median)",
            _lines(comparison, label, "token_p50", 1e3),
        ),
        Panel(
            f"{title}: prefill, one request",
            "context, tokens",
            "seconds to the first token",
            _lines(comparison, label, "first_token_seconds", 1.0),
        ),
    ]


def _lines(
    comparison: Comparison, label: Callable[[Cell], int], attribute: str, scale: float
) -> list[Line]:
    lines = []
    for row in dict.fromkeys(cell.row for cell in comparison.cells):
        cells = [cell for cell in comparison.cells if cell.row == row and cell.is_ok]
        spreads = [
            Spread.of([getattr(run, attribute) * scale for run in cell.runs]) for cell in cells
        ]
        if cells:
            lines.append(
                Line(
                    row,
                    [label(cell) for cell in cells],
                    [spread.median for spread in spreads],
                    [spread.low for spread in spreads],
                    [spread.high for spread in spreads],
                )
            )
    return lines


def _table(title: str, first: str, comparison: Comparison, label: Callable[[Cell], int]) -> Table:
    table = Table(
        title,
        [
            first,
            "row",
            "ms a token (range)",
            "p99",
            "first token ms (range)",
            "tokens/s",
            "of limit",
        ],
        labels=2,
    )
    last = None
    for cell in comparison.cells:
        if last not in (None, cell.shape):
            table.breaks.append(len(table.rows))
        shown = f"{label(cell):,}" if cell.shape != last else ""
        last = cell.shape
        if not cell.is_ok:
            table.rows.append([shown, cell.row, status(cell), *[""] * 4])
            continue
        token = Spread.of([run.token_p50 * 1e3 for run in cell.runs])
        first_token = Spread.of([run.first_token_seconds * 1e3 for run in cell.runs])
        share = cell.share_of(cell.limit)
        table.rows.append(
            [
                shown,
                cell.row,
                f"{token.median:.1f} ({token.low:.1f}–{token.high:.1f})",
                f"{cell.median('token_p99') * 1e3:.1f}",
                f"{first_token.median:,.0f} ({first_token.low:,.0f}–{first_token.high:,.0f})",
                number(cell.tokens_per_second.median),
                "" if share is None else f"{share:.0%}",
            ]
        )
    pipelines = [cell for cell in comparison.cells if cell.is_ok and not cell.is_hf]
    table.notes = list(dict.fromkeys(f"{cell.row}: {choice(cell)}" for cell in pipelines))
    failed = [cell for cell in comparison.cells if cell.status in ("oom", "failed", "timeout")]
    table.notes += [f"{cell.row}, {cell.shape}: {cell.why}" for cell in failed]
    return table


def _growth(comparison: Comparison) -> list[str]:
    """How decode time grows with context, by a straight line through the medians."""
    notes = []
    for line in _lines(comparison, _context, "token_p50", 1e3):
        if len(line.xs) > 1:
            start, slope = fit_line(line.xs, line.ys)
            notes.append(
                f"{line.name}: {start:.1f} ms a token and {slope * 1000:.2f} ms more for each "
                "1,000 tokens of context (least squares)."
            )
    return notes


def _prompt(cell: Cell) -> int:
    return cell.prompt_tokens


def _context(cell: Cell) -> int:
    return cell.prompt_tokens + cell.new_tokens
