"""What an analysis says, as tables for people."""

from __future__ import annotations

from rich.table import Table

from ppinfer.timeline.palette import name_of
from ppinfer.trace.analysis import Analysis, Section
from ppinfer.trace.model import WAITS, WORK

_TITLES = ("whole run", "steady decode")


def sections(analysis: Analysis) -> list[tuple[str, Section]]:
    """Those that are there, by name."""
    found = zip(_TITLES, (analysis.total, analysis.steady), strict=True)
    return [(title, section) for title, section in found if section is not None]


def describe(title: str, section: Section) -> str:
    """A line: how long, how many steps, how fast."""
    words = (
        f"{title}: {section.seconds:.3f} s, {section.steps} steps, "
        f"{section.tokens / section.seconds:,.0f} tokens/s computed"
    )
    return f"{words}, driver {section.driver_seconds_per_step * 1e6:.0f} us a step"


def time_table(analysis: Analysis) -> Table:
    """Where each stage's wall time went, in percent, and how long its steps computed."""
    table = Table(title="Where the time went (% of wall)", title_justify="left", pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("stage")
    for kind in (*WORK, *WAITS):
        table.add_column(name_of(kind).replace("wait for", "wait"), justify="right")
    table.add_column("no span", justify="right")
    table.add_column("step ms", justify="right")
    for title, section in sections(analysis):
        for stage in section.stages:
            step = stage.decode_step if title == _TITLES[1] else stage.decode_step
            table.add_row(
                title if stage.stage == 0 else "",
                str(stage.stage),
                *(_percent(stage.parts[kind].share) for kind in (*WORK, *WAITS)),
                _percent(abs(stage.uncovered_share)),
                "-" if step is None else f"{step * 1e3:.2f}",
            )
        table.add_section()
    return table


def bubble_table(analysis: Analysis) -> Table:
    """Every stage's waits by cause; times of single waits in milliseconds."""
    table = Table(title="Bubbles by cause and stage", title_justify="left", pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("stage")
    table.add_column("cause", no_wrap=True)
    for title in ("seconds", "share", "number", "p50 ms", "p99 ms", "longest"):
        table.add_column(title, justify="right")
    table.add_column("driver busy", justify="right")
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


def _percent(share: float) -> str:
    return f"{share:.1%}"
