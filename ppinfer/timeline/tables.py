"""What an analysis says, as tables for people."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ppinfer.timeline.palette import name_of
from ppinfer.trace.analysis import Analysis, Section
from ppinfer.trace.model import WAITS, WORK

_TITLES = ("run", "steady")


def sections(analysis: Analysis) -> list[tuple[str, Section]]:
    """The whole run and its steady decode, if it has one, by name."""
    found = zip(_TITLES, (analysis.total, analysis.steady), strict=True)
    return [(title, section) for title, section in found if section is not None]


def describe(title: str, section: Section) -> str:
    """A line: how long, how many steps, new tokens a second, when no stage was at work."""
    name = "steady decode" if title == _TITLES[1] else "whole run"
    return (
        f"{name}: {section.seconds:.3f} s, {section.steps} steps, "
        f"{section.new_tokens / section.seconds:,.0f} tokens/s, "
        f"idle {section.idle_share:.1%}, "
        f"driver {section.driver_seconds_per_step * 1e6:.0f} us a step"
    )


def time_table(analysis: Analysis) -> Table:
    """Where each stage's wall time went, in percent, and how long it computed and sampled in
    a decode step (the median)."""
    table = _new_table("Where the time went, in % of wall time")
    table.add_column("part", no_wrap=True)
    table.add_column("stage")
    for kind in (*WORK, *WAITS):
        table.add_column(name_of(kind), justify="right")
    table.add_column("no span", justify="right")
    table.add_column("step ms", justify="right")
    for title, section in sections(analysis):
        for stage in section.stages:
            table.add_row(
                title if stage.stage == 0 else "",
                str(stage.stage),
                *(_percent(stage.parts[kind].share) for kind in (*WORK, *WAITS)),
                _percent(abs(stage.uncovered_share)),
                _milliseconds(stage.decode_step),
            )
        table.add_section()
    return table


def bubble_table(analysis: Analysis) -> Table:
    """Every stage's waits by cause; times of single waits in milliseconds."""
    table = _new_table("Bubbles by cause and stage")
    table.caption = "total in s and % of wall; single waits in ms; driver: % in which it worked"
    table.caption_justify = "left"
    table.add_column("part", no_wrap=True)
    table.add_column("stage")
    table.add_column("cause", no_wrap=True)
    for title in ("total", "%", "count", "p50", "p99", "max", "driver"):
        table.add_column(title, justify="right")
    for title, section in sections(analysis):
        last = None
        for number, bubble in enumerate(section.bubbles):
            part = bubble.part
            table.add_row(
                title if number == 0 else "",
                str(bubble.stage) if bubble.stage != last else "",
                name_of(bubble.cause),
                f"{part.seconds:.3f}",
                _percent(part.share),
                str(part.count),
                *(f"{seconds * 1e3:.2f}" for seconds in (part.p50, part.p99, part.longest)),
                _percent(bubble.driver_seconds / part.seconds if part.seconds else 0.0),
            )
            last = bubble.stage
        table.add_section()
    return table


def _new_table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True, show_edge=False,
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"
