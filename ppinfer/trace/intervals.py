"""Spans as intervals of time: clipping, overlaps, and the stretch of a run that is steady."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ppinfer.trace.model import Lane, Span, Trace

Interval: TypeAlias = tuple[int, int]
"""Start and end in nanoseconds of the trace."""

Computes: TypeAlias = dict[int, Interval]
"""Of each step on one stage: from when it is first computed until that is done."""

_FEWEST_STEPS = 8
"""What fewer steps do says little about a steady state."""


class Union:
    """The moments that any of some intervals holds."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        merged: list[Interval] = []
        for start, end in sorted(intervals):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
        self._starts = [start for start, _ in merged]
        self._intervals = merged
        self._before = [0]
        for start, end in merged:
            self._before.append(self._before[-1] + end - start)

    def overlap(self, start: int, end: int) -> int:
        """Nanoseconds of ``start`` to ``end`` that belong to the union."""
        return self._until(end) - self._until(start)

    def _until(self, at: int) -> int:
        index = bisect_right(self._starts, at)
        if index == 0:
            return 0
        start, end = self._intervals[index - 1]
        return self._before[index - 1] + min(at, end) - start


def clip(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """The parts of ordered spans that lie between ``start`` and ``end``."""
    first = bisect_right(spans, start, key=lambda span: span.end)
    found = []
    for span in spans[first:]:
        if span.start >= end:
            break
        found.append(span._replace(start=max(span.start, start), end=min(span.end, end)))
    return found


def run_interval(trace: Trace) -> Interval:
    """From the first span of a step to the last, as far as every lane was recorded."""
    own = [span for lane in trace.lanes for span in lane.spans if span.step >= 0]
    start = min((span.start for span in own), default=0)
    end = max((span.end for span in own), default=start)
    cuts = [lane.spans[-1].end for lane in trace.lanes if lane.dropped and lane.spans]
    return start, max(min([end, *cuts]), start)


def computes(lane: Lane) -> Computes:
    found: Computes = {}
    for span in lane.spans:
        if span.activity == "compute" and span.step >= 0:
            start, _ = found.get(span.step, (span.start, 0))
            found[span.step] = (start, span.end)
    return found


def in_flight(driver: Lane) -> Union:
    """When any step was between its plan and its result."""
    planned: dict[int, int] = {}
    flights = []
    for span in driver.spans:
        if span.activity == "plan" and span.step >= 0:
            planned[span.step] = span.start
        elif span.activity == "commit" and span.step in planned:
            flights.append((planned.pop(span.step), span.end))
    return Union(flights)


def steady_decode(trace: Trace, stages: Sequence[Computes], within: Interval) -> Interval | None:
    """When every stage had steps of decoding sequences only, of every slot, and none was idle for
    want of a first step or after a last one; ``None`` where there are too few such steps.

    It is the longest stretch of consecutive decode steps, up to the last step of the slot that is
    done first; from when the last stage begins its first step until the first stage ends its last.
    """
    if not stages:
        return None
    runs: list[list[int]] = [[]]
    for step in sorted(set.intersection(*map(set, stages))):
        facts = trace.steps.get(step)
        inside = all(within[0] <= of[step][0] and of[step][1] <= within[1] for of in stages)
        if inside and facts is not None and facts.is_decode:
            if runs[-1] and step != runs[-1][-1] + 1:
                runs.append([])
            runs[-1].append(step)
    longest = max(runs, key=len)
    last_of_slot = {trace.steps[step].slot: step for step in longest}
    steady = [step for step in longest if step <= min(last_of_slot.values())]
    if len(steady) < _FEWEST_STEPS:
        return None
    start = max(of[steady[0]][0] for of in stages)
    end = min(of[steady[-1]][1] for of in stages)
    return (start, end) if end > start else None
