"""Makes traces: the driver's own clock and facts, and the stages' recordings put beside them.

Times of a stage are those of its own clock. Processes of one host share that clock, so lanes align
by themselves. A stage elsewhere is asked for its time when the trace begins: if what it says does
not lie between the question and the answer, its clock is another one, and is shifted so that it
lies in the middle; the lane can be wrong by half of that trip, which the trace says.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ppinfer.engine.report import StageLayout
from ppinfer.errors import PPInferError, TraceError
from ppinfer.messages import StageTrace, StepPlan, TraceRequest
from ppinfer.trace.chrome import require_writable, write_trace
from ppinfer.trace.clock import MOST_SPANS, Activity, Clock, DriverActivity, Recording
from ppinfer.trace.model import Lane, Span, StepFacts, Trace


class Tracer:
    """The driver's part. ``request`` sends a message to every stage; the driver hands answers and
    plans to ``take`` and ``planned``. ``clock`` is the driver's, and always on."""

    def __init__(
        self, layouts: Sequence[StageLayout], request: Callable[[TraceRequest], None]
    ) -> None:
        self.clock = Clock(DriverActivity.WAIT)
        self._layouts = layouts
        self._request = request
        self._asked: tuple[Future[Trace | None], bool, int] | None = None
        self._answers: dict[int, tuple[StageTrace, int]] = {}
        self._shifts: dict[int, tuple[int, int]] = {}
        self._steps: dict[int, StepFacts] | None = None  # of the trace that is being made

    def switch(self, on: bool, future: Future[Trace | None]) -> None:
        """Begin a trace, or end it: ``future`` then gets the trace, else ``None``."""
        if self._asked is not None or on is (self._steps is not None):
            future.set_exception(TraceError("The engine makes one trace at a time."))
            return
        self._asked, self._answers = (future, on, time.perf_counter_ns()), {}
        if on:
            self._steps = {}
            self.clock.start_recording()
        self._request(TraceRequest(on))

    def planned(self, plan: StepPlan) -> None:
        self.clock.belongs_to(plan.step_id)
        if self._steps is not None and len(self._steps) < MOST_SPANS:
            decodes = sum([len(part.tokens) == 1 and part.start > 0 for part in plan.steps])
            self._steps[plan.step_id] = StepFacts(
                plan.slot, plan.num_tokens, len(plan.steps), decodes
            )

    def take(self, answer: StageTrace) -> None:
        self._answers[answer.stage] = (answer, time.perf_counter_ns())
        if self._asked is None or len(self._answers) < len(self._layouts):
            return
        future, on, asked = self._asked
        self._asked = None
        if on:
            self._shifts = {
                stage: _shift(asked, answer.now, heard)
                for stage, (answer, heard) in self._answers.items()
            }
            future.set_result(None)
        else:
            future.set_result(self._assemble())

    def unanswered(self) -> tuple[float, int] | None:
        """Since when (monotonic seconds) an answer is awaited, and from which stage."""
        if self._asked is None:
            return None
        missing = set(range(len(self._layouts))) - self._answers.keys()
        return self._asked[2] / 1e9, min(missing)

    def fail(self, error: Exception) -> None:
        """Tell who waits that no trace will come."""
        if self._asked is not None:
            self._asked[0].set_exception(error)
            self._asked = None

    def _assemble(self) -> Trace:
        own = self.clock.stop_recording()
        assert self._steps is not None
        steps, self._steps = self._steps, None
        zero = own.start
        lanes = []
        for stage, layout in enumerate(self._layouts):
            answer, _ = self._answers[stage]
            shift, error = self._shifts[stage]
            lanes.append(
                _lane(
                    f"stage {stage}: layers {layout.first_layer}-{layout.last_layer - 1}",
                    Recording(answer.start, answer.spans, answer.dropped),
                    Activity,
                    zero - shift,
                    error,
                )
            )
        return Trace(lanes, _lane("driver", own, DriverActivity, zero, 0), steps)


def _shift(asked: int, told: int, heard: int) -> tuple[int, int]:
    """What to add to a stage's times to make them the driver's, and by how much that may err."""
    if asked <= told <= heard:
        return 0, 0
    return (asked + heard) // 2 - told, (heard - asked) // 2


def _lane(name: str, found: Recording, kinds: type[IntEnum], zero: int, error: int) -> Lane:
    names = [kind.name.lower() for kind in kinds]
    spans = [
        Span(names[activity], step, start - zero, end - zero)
        for activity, step, start, end in found.spans()
    ]
    return Lane(name, spans, found.dropped, error)


class TracedDriver(Protocol):
    def trace(self, on: bool) -> Trace | None: ...


class Tracing:
    """A context in which an engine is traced; afterwards ``trace`` is there, and the file too.

    A run is worth more than its trace: what fails at the end is said by ``warn``, not raised.
    """

    def __init__(
        self,
        driver: TracedDriver | None,
        path: Path | None,
        info: dict[str, str],
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if path is not None:
            require_writable(path)
        self.trace: Trace | None = None
        self.is_written = False
        self._driver = driver
        self._path = path
        self._info = info
        self._warn = warn or (lambda words: warnings.warn(words, RuntimeWarning, stacklevel=3))

    def __enter__(self) -> Tracing:
        if self._driver is not None:
            self._driver.trace(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._driver is None:
            return
        try:
            self.trace = self._driver.trace(False)
            assert self.trace is not None
            self.trace.info |= self._info
            if self._path is not None:
                write_trace(self.trace, self._path)
                self.is_written = True
        except PPInferError as problem:
            if not isinstance(error, PPInferError):  # else that is the reason, and is told
                self._warn(str(problem))
