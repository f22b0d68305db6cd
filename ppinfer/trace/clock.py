"""A clock that is always in exactly one activity, so that the parts of its time sum to the wall.

The counters are always on. While a recording is on, every activity is also kept as a span, in one
array that grows in place: two whole numbers a span, since each begins where the last one ended.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from enum import IntEnum

MOST_SPANS = 1 << 20
"""Spans that a recording keeps: 16 MiB, far below what one control frame may hold. A stage makes
about seven a step; those past the limit are counted and dropped."""

SPAN_BYTES = 16
"""Of a span as it is packed."""

_BITS = 4
_MASK = (1 << _BITS) - 1


class Activity(IntEnum):
    """What a stage does. Every moment of it is one of these; none is a residue of the others."""

    COMPUTE = 0  # the layers
    SAMPLE = 1  # norm, head and drawing
    WAIT_PLAN = 2  # nothing to do is known
    WAIT_INPUT = 3  # the plan is here, but not what the stage before sends
    SEND = 4  # handing results on, or waiting for room to
    PREPARE = 5  # plans read, receives posted, block tables brought up, the driver answered


class DriverActivity(IntEnum):
    WAIT = 0  # for results and requests
    READ = 1  # messages taken in and decoded
    COMMIT = 2  # results: tokens appended, blocks freed
    ADMIT = 3  # requests taken in or dropped, questions answered
    PLAN = 4  # steps put together and sent to the stages
    DELIVER = 5  # text made and handed to who asked for it


@dataclass(frozen=True, slots=True)
class Recording:
    """Spans as packed by ``Clock``: ``(step << 4 | activity, end)`` each, native 64-bit words.

    Times are nanoseconds of the process's monotonic clock; the first span begins at ``start``.
    """

    start: int
    packed: bytes
    dropped: int

    def spans(self) -> list[tuple[int, int, int, int]]:
        """(activity, step, start, end) in order; the step is -1 where there is none.

        Spans that only a look at the clock has divided are put together again.
        """
        words = array("q")
        words.frombytes(self.packed)
        found: list[tuple[int, int, int, int]] = []
        start, last = self.start, None
        for code, end in zip(words[::2], words[1::2], strict=True):
            if code == last:
                found[-1] = (*found[-1][:3], end)
            elif end > start:
                found.append((code & _MASK, code >> _BITS, start, end))
                last = code
            start = end
        return found


class Clock:
    """``first`` is what it begins with; its enumeration is what the clock knows."""

    def __init__(self, first: IntEnum) -> None:
        self._totals = [0] * len(type(first))
        self._now: int = first
        self._step = -1
        self._since = time.perf_counter_ns()
        self._record: array[int] | None = None
        self._start = 0
        self._dropped = 0

    def enter(self, activity: int, step: int = -1) -> None:
        """Close the running span and begin another, which may belong to a step."""
        now = time.perf_counter_ns()
        self._totals[self._now] += now - self._since
        record = self._record
        if record is not None:
            if len(record) < 2 * MOST_SPANS:
                record.append(self._step << _BITS | self._now)
                record.append(now)
            else:
                self._dropped += 1
        self._now = activity
        self._step = step
        self._since = now

    def belongs_to(self, step: int) -> None:
        """The running span turns out to be that step's."""
        self._step = step

    def seconds(self) -> list[float]:
        """Seconds in each activity up to now, in the order of the enumeration."""
        self.enter(self._now, self._step)
        return [total / 1e9 for total in self._totals]

    def start_recording(self) -> None:
        self.take_recording(True)

    def stop_recording(self) -> Recording:
        """What was recorded since; empty where nothing was."""
        return self.take_recording(False)

    def take_recording(self, go_on: bool) -> Recording:
        """What was recorded since. The next recording, if any, begins where this one ends."""
        self.enter(self._now, self._step)
        packed = b"" if self._record is None else self._record.tobytes()
        found = Recording(self._start, packed, self._dropped)
        self._record = array("q") if go_on else None
        self._start, self._dropped = self._since, 0
        return found
