"""What stages did, as boxes to be drawn: a step's work is one, and so is each longer wait.

What is shorter than half a millisecond is added to its longer neighbour, so that the number of
boxes is bounded by the time that they cover, however short the steps are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ppinfer.engine.state import LiveState, StageSpans, StepLabel
from ppinfer.trace.clock import Activity, Recording

PLAN, INPUT, SEND, IDLE, OTHER = -1, -2, -3, -4, -5
"""Kinds of boxes beside the micro-batch slots, which are 0, 1, …: waits by what for, no request at
all, and the work of a step that was planned before anybody watched."""

_WAITS: dict[int, int] = {Activity.WAIT_PLAN: PLAN, Activity.WAIT_INPUT: INPUT, Activity.SEND: SEND}

SHORTEST = 500_000
"""Nanoseconds."""

_STEPS_KEPT = 4096

Box: TypeAlias = tuple[int, int, int, int]
"""Kind, step (-1 for none), start, end; times in nanoseconds of the driver's clock."""


class Lanes:
    """Makes boxes of one look after the other."""

    def __init__(self) -> None:
        self._labels: OrderedDict[int, StepLabel] = OrderedDict()
        self._was_idle = True

    def boxes(self, live: LiveState) -> list[list[Box]]:
        """Those of each stage, since the last look."""
        self._labels |= live.steps
        while len(self._labels) > _STEPS_KEPT:
            self._labels.popitem(last=False)
        is_idle = not (live.state.running or live.state.waiting)
        lanes = []
        for spans in live.spans:
            boxes = _merged(_named(spans, self._labels))
            if is_idle:
                _rest(boxes, range(len(boxes) - 1, -1, -1))
            if self._was_idle:
                _rest(boxes, range(len(boxes)))
            lanes.append(boxes)
        self._was_idle = is_idle
        return lanes


def _named(spans: Sequence[StageSpans], labels: Mapping[int, StepLabel]) -> Iterator[Box]:
    for part in spans:
        shift = part.shift
        for activity, step, start, end in Recording(part.start, part.packed, part.dropped).spans():
            wait = _WAITS.get(activity)
            if wait is not None:
                yield wait, -1, start + shift, end + shift
                continue
            label = labels.get(step)
            yield OTHER if label is None else label.slot, step, start + shift, end + shift


def _merged(boxes: Iterable[Box]) -> list[Box]:
    made: list[Box] = []
    for box in boxes:
        kind, step, start, end = box
        if not made:
            made.append(box)
            named = end - start
            continue
        last_kind, last_step, last_start, last_end = made[-1]
        if (kind, step) == (last_kind, last_step):
            made[-1] = (kind, step, last_start, end)
            named += end - start
        elif last_end - last_start >= SHORTEST:
            made.append(box)
            named = end - start
        elif end - start > named:  # the longest part names the whole
            made[-1] = (kind, step, last_start, end)
            named = end - start
        else:
            made[-1] = (last_kind, last_step, last_start, end)
    return made


def _rest(boxes: list[Box], order: Iterable[int]) -> None:
    """Waits for a plan while there was no request are no bubbles: those before the first work, in
    ``order``."""
    for index in order:
        kind, step, start, end = boxes[index]
        if kind == PLAN:
            boxes[index] = (IDLE, step, start, end)
        elif kind != OTHER:
            return
