"""Tables that are drawn once for a terminal and once as Markdown. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ppinfer.bench.stats import Spread

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Table:
    """Texts only; the first ``labels`` columns are names, the others figures.

    ``breaks`` are the indices of rows that begin a new group.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    labels: int = 1
    breaks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show(tables: Sequence[Table], console: Console) -> None:
    """On a terminal; nothing is cut off, so a narrow one wraps."""
    from rich import box
    from rich.table import Table as RichTable

    for table in tables:
        drawn = RichTable(
            title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1)
        )
        for index, column in enumerate(table.columns):
            is_label = index < table.labels
            drawn.add_column(
                column, justify="left" if is_label else "right", no_wrap=is_label, overflow="fold"
            )
        for index, row in enumerate(table.rows):
            if index in table.breaks:
                drawn.add_section()
            drawn.add_row(*row)
        console.print(drawn)
        for note in table.notes:
            console.print(note, highlight=False, markup=False)


def markdown(tables: Sequence[Table]) -> str:
    """The same tables as they look well in a README."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", ""]
        lines.append("| " + " | ".join(table.columns) + " |")
        marks = ["---" if i < table.labels else "--:" for i in range(len(table.columns))]
        lines.append("| " + " | ".join(marks) + " |")
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        if table.notes:
            lines += ["", *(f"- {note}" for note in table.notes)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def number(value: float) -> str:
    """Three digits that matter, thousands separated."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def with_range(spread: Spread) -> str:
    """The median, and the range it was in."""
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def megabytes(counts: Sequence[float]) -> str:
    """One figure a process."""
    return " + ".join(f"{count / 1e6:,.0f}" for count in counts)
