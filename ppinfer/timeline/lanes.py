"""Lanes in the terminal: a row a stage, a column a slice of time.

Where a column is shorter than most steps, it shows what filled most of it: the slot's letter on the
slot's colour, or a wait. Where it holds several steps, the height of its block is the share of time
at work, over the colour of the wait that took most of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ppinfer.timeline.buckets import Kind, cut
from ppinfer.timeline.palette import ACTIVITIES, DECODE, LETTERS, PREFILL, name_of, slot_colour
from ppinfer.trace.intervals import Interval
from ppinfer.trace.model import DRIVER_WORK, WAITS, WORK, Lane, Trace, slot_letter

_BLOCKS = " ▁▂▃▄▅▆▇█"
_SHOWN_WAIT = 0.06
"""A share of a column that a block of eight steps can show."""

_CLOSE_STEPS = 12
"""Computing spans of a stage that a close look shows, about."""


def lanes(trace: Trace, interval: Interval, width: int) -> RenderableType:
    """Axis, rows and legend for an interval, ``width`` characters wide."""
    names = [f"stage {number}" for number in range(len(trace.stages))] + ["driver"]
    margin = max(map(len, names)) + 1
    columns = max(width - margin, 10)
    close = (interval[1] - interval[0]) / columns < _typical_step(trace, interval)
    rows = [Text(" " * margin) + _axis(interval, columns)]
    for name, lane in zip(names, [*trace.stages, trace.driver], strict=True):
        row = Text(name.ljust(margin))
        for column in cut(lane, trace, *interval, columns):
            row += _close_cell(column) if close else _coarse_cell(column)
        rows.append(row)
    rows.append(Text())
    rows.append(_close_legend(trace, interval) if close else _coarse_legend())
    return Group(*rows)


def is_coarse(trace: Trace, interval: Interval, width: int) -> bool:
    """Whether ``lanes`` would put several steps into a column."""
    return (interval[1] - interval[0]) / max(width - 8, 10) >= _typical_step(trace, interval)


def closer(trace: Trace, interval: Interval) -> Interval:
    """A few steps from the middle of an interval, beginning with one of the first stage."""
    middle = sum(interval) // 2
    starts = [
        span.start
        for span in trace.stages[0].spans
        if span.activity == "compute" and middle <= span.start < interval[1]
    ]
    if len(starts) < 2:
        return interval
    last = starts[min(_CLOSE_STEPS, len(starts) - 1)]
    return starts[0], last


def _typical_step(trace: Trace, interval: Interval) -> float:
    """The median of the computing spans of all stages in the interval, in nanoseconds."""
    lengths = sorted(
        span.end - span.start
        for lane in trace.stages
        for span in lane.spans
        if span.activity == "compute" and interval[0] <= span.start < interval[1]
    )
    return lengths[len(lengths) // 2] if lengths else 0.0


def _axis(interval: Interval, columns: int) -> Text:
    """Moments of the trace, about every 20 columns."""
    start, end = (at / 1e9 for at in interval)
    digits = 1
    while digits < 6 and (end - start) / max(columns // 20, 1) < 2 * 10.0**-digits:
        digits += 1
    axis = ""
    for column in range(0, columns - 8, 20):
        at = start + (end - start) * column / columns
        axis += f"|{at:.{digits}f} s".ljust(20)
    return Text(axis[:columns], style="dim")


def _coarse_cell(column: dict[Kind, float]) -> Text:
    work = sum(share for kind, share in column.items() if kind[0] in (*WORK, *DRIVER_WORK))
    waits = {kind[0]: share for kind, share in column.items() if kind[0] in WAITS}
    prefill = sum(s for kind, s in column.items() if kind[0] == "compute" and not kind[2])
    style = PREFILL if prefill > work / 2 else DECODE
    worst = max(waits, key=waits.__getitem__, default="")
    if waits and waits[worst] >= _SHOWN_WAIT:
        style += f" on {ACTIVITIES[worst]}"
    return Text(_BLOCKS[round(min(work, 1.0) * 8)], style=style)


def _close_cell(column: dict[Kind, float]) -> Text:
    if not column:
        return Text(" ")
    activity, slot, _ = max(column, key=column.__getitem__)
    return _sign(activity, slot)


def _sign(activity: str, slot: int = 0) -> Text:
    if activity == "compute":
        return Text(slot_letter(slot)[0], style=f"bold white on {slot_colour(slot)}")
    if activity == "wait":
        return Text(" ")
    ink = "white" if activity == "sample" else "black"
    return Text(LETTERS[activity], style=f"{ink} on {ACTIVITIES[activity]}")


def _close_legend(trace: Trace, interval: Interval) -> Text:
    seen = {
        (span.activity, trace.steps[span.step].slot if span.activity == "compute" else 0)
        for lane in trace.lanes
        for span in lane.spans
        if span.end > interval[0]
        and span.start < interval[1]
        and (span.activity != "compute" or span.step in trace.steps)
    }
    slots = sorted(slot for activity, slot in seen if activity == "compute")
    parts = [(_sign("compute", slot), f"micro-batch {slot_letter(slot)}") for slot in slots]
    others = {activity for activity, _ in seen}
    parts += [(_sign(kind), name_of(kind)) for kind in LETTERS if kind in others and kind != "wait"]
    return _joined(iter(parts))


def _coarse_legend() -> Text:
    parts = [(Text("▆", style=DECODE), "decode"), (Text("▆", style=PREFILL), "prefill")]
    parts += [(Text(" ", style=f"on {ACTIVITIES[kind]}"), name_of(kind)) for kind in WAITS]
    return _joined(iter(parts), "height: share of time at work  ")


def _joined(parts: Iterator[tuple[Text, str]], first: str = "") -> Text:
    legend = Text(first, style="dim")
    for sign, words in parts:
        legend += sign + Text(f" {words}  ", style="dim")
    return legend


def lane_of(trace: Trace, number: int) -> Lane:
    return trace.stages[number]
