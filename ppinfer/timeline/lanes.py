"""Lanes in the terminal: a row a stage, a column a slice of time.

Where a column is shorter than most steps, it shows what filled most of it: the slot's letter on the
slot's colour, or a wait. Where it holds several steps, the height of its block is the share of time
at work, over the colour of the wait that took most of the rest. The driver's is a height always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from ppinfer.timeline.buckets import Kind, cut
from ppinfer.timeline.palette import ACTIVITIES, DECODE, LETTERS, PREFILL, name_of, slot_colour
from ppinfer.trace.intervals import Interval
from ppinfer.trace.model import DRIVER_WORK, WAITS, WORK, Trace, slot_letter

_BLOCKS = " ▁▂▃▄▅▆▇█"
_SHOWN_WAIT = 0.06
"""A share of a column that a block of eight steps can show."""

_TICK_COLUMNS = 15

_CLOSE_STEPS = 12
"""Computing spans of a stage that a close look shows, about."""


def lanes(trace: Trace, interval: Interval, width: int) -> RenderableType:
    """Axis, rows and legend for an interval, ``width`` characters wide."""
    names = [f"stage {number}" for number in range(len(trace.stages))]
    margin = max(map(len, names)) + 1
    columns = max(width - margin, 10)
    close = (interval[1] - interval[0]) / columns < _typical_step(trace, interval)
    rows = [Text(" " * margin) + _axis(interval, columns)]
    seen: set[Kind] = set()
    for name, lane in zip(names, trace.stages, strict=False):
        row = Text(name.ljust(margin))
        for column in cut(lane, trace, *interval, columns):
            if close and column:
                kind = max(column, key=column.__getitem__)
                seen.add((kind[0], kind[1], True))
                row += _sign(kind[0], kind[1])
            else:
                row += _height(column)
        rows.append(row)
    row = Text("driver".ljust(margin))
    for column in cut(trace.driver, trace, *interval, columns):
        row += _driver_height(column)
    legend = _close_legend(seen) if close else _coarse_legend()
    return Group(*rows, row, Text(), legend)


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
    """Round moments of the trace, one about every twenty columns."""
    start, end = (at / 1e9 for at in interval)
    column = (end - start) / columns
    least = max(column * _TICK_COLUMNS, 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= least)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    axis = " " * columns
    for number in range(math.ceil(start / step - 1e-9), math.floor(end / step) + 1):
        at = round((number * step - start) / column)
        label = f"|{number * step:.{digits}f} s"
        if at + len(label) <= columns:
            axis = axis[:at] + label + axis[at + len(label) :]
    return Text(axis, style="dim")


def _height(column: dict[Kind, float]) -> Text:
    work = sum(share for kind, share in column.items() if kind[0] in WORK)
    waits = {kind[0]: share for kind, share in column.items() if kind[0] in WAITS}
    prefill = sum(s for kind, s in column.items() if kind[0] == "compute" and not kind[2])
    style = PREFILL if prefill > work / 2 else DECODE
    worst = max(waits, key=waits.__getitem__, default="")
    if waits and waits[worst] >= _SHOWN_WAIT:
        style += f" on {ACTIVITIES[worst]}"
    return Text(_BLOCKS[round(min(work, 1.0) * 8)], style=style)


def _driver_height(column: dict[Kind, float]) -> Text:
    """Its work is little, and shown however little it is."""
    work = sum(share for kind, share in column.items() if kind[0] in DRIVER_WORK)
    return Text(_BLOCKS[min(math.ceil(work * 8 - 0.08), 8)], style="dim")


def _sign(activity: str, slot: int = 0) -> Text:
    if activity == "compute":
        return Text(slot_letter(slot)[0], style=f"bold white on {slot_colour(slot)}")
    ink = "white" if activity == "sample" else "black"
    return Text(LETTERS[activity], style=f"{ink} on {ACTIVITIES[activity]}")


def _close_legend(seen: set[Kind]) -> Text:
    slots = sorted(slot for activity, slot, _ in seen if activity == "compute")
    letters = Text()
    for slot in slots:
        letters.append_text(_sign("compute", slot))
    parts = [(letters, "micro-batches")] if slots else []
    others = {activity for activity, _, _ in seen}
    parts += [(_sign(kind), name_of(kind)) for kind in LETTERS if kind in others]
    return _joined(parts)


def _coarse_legend() -> Text:
    parts = [(Text("▆", style=DECODE), "decode"), (Text("▆", style=PREFILL), "prefill")]
    parts += [(Text(" ", style=f"on {ACTIVITIES[kind]}"), name_of(kind)) for kind in WAITS]
    return _joined(parts, "height: at work  ")


def _joined(parts: Iterable[tuple[Text, str]], first: str = "") -> Text:
    legend = Text(first, style="dim")
    for sign, words in parts:
        legend.append_text(sign).append(f" {words}  ")
    return legend
