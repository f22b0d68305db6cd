"""Makes traces: the driver's own clock and facts, and the stages' recordings put beside them.

Times of a stage are those of its own clock. Processes of one host share that clock, so lanes align
by themselves. A stage elsewhere is asked for its time when the trace begins: if what it says does
not lie between the question and the answer, its clock is another one, and is shifted so that it
lies in the middle; the lane can be wrong by half of that trip, which the trace says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ppinfer.engine.collected import Collected
from ppinfer.engine.report import StageLayout
from ppinfer.engine.rounds import Round, Rounds
from ppinfer.errors import PPInferError, TraceError
from ppinfer.messages import StageTrace, StepPlan, TraceRequest
from ppinfer.trace.chrome import require_writable, write_trace
from ppinfer.trace.clock import Activity, Clock, DriverActivity, Recording
from ppinfer.trace.model import Lane, Span, StepFacts, Trace


class Tracer:
    """The driver's part. ``request`` sends a message to every stage; the driver hands answers and
    plans to ``take`` and ``planned``. ``clock`` is the driver's, and always on.

    Beside a trace, somebody may watch: what the stages hand over then goes to both.
    """

    def __init__(
        self, layouts: Sequence[StageLayout], request: Callable[[TraceRequest], None]
    ) -> None:
        self.clock = Clock(DriverActivity.WAIT)
        self._layouts = layouts
        self._request = request
        self._rounds: Rounds[StageTrace] = Rounds(len(layouts))
        self._trace: Collected | None = None
        self._switching: Future[Trace | None] | None = None
        self._watch: Collected | None = None
        self._looking: list[Future[None]] = []

    # ------------------------------------------------------------ the trace

    def switch(self, on: bool, future: Future[Trace | None]) -> None:
        """Begin a trace, or end it: ``future`` then gets the trace, else ``None``."""
        if self._switching is not None or on is (self._trace is not None):
            future.set_exception(TraceError("The engine makes one trace at a time."))
            return
        self._switching = future
        if on:
            self._trace = Collected(len(self._layouts))
            self.clock.start_recording()
            self._ask(self._begun, True)
        else:
            self._ask(self._ended, self._watch is not None)

    def _begun(self, first: Round[StageTrace]) -> None:
        assert self._trace is not None
        assert self._switching is not None
        self._trace.begin(first)
        future, self._switching = self._switching, None
        future.set_result(None)

    def _ended(self, last: Round[StageTrace]) -> None:
        assert self._switching is not None
        future, self._switching = self._switching, None
        future.set_result(self._assemble())

    def _assemble(self) -> Trace:
        found, self._trace = self._trace, None
        assert found is not None
        own = self.clock.stop_recording()
        lanes = []
        for stage, layout in enumerate(self._layouts):
            shift, error = found.shifts[stage]
            name = f"stage {stage}: layers {layout.first_layer}-{layout.last_layer - 1}"
            lanes.append(_lane(name, found.recording(stage), Activity, own.start - shift, error))
        return Trace(lanes, _lane("driver", own, DriverActivity, own.start, 0), found.steps)

    # ------------------------------------------------------------ who watches

    def look(self, future: Future[None]) -> None:
        """Resolve ``future`` once every stage has handed over what it did until now, for ``seen``.
        The first look only begins to record; one that is under way is joined."""
        self._looking.append(future)
        if len(self._looking) > 1:
            return
        if self._watch is None:
            self._watch = Collected(len(self._layouts))
        self._ask(self._looked, True)

    def _looked(self, found: Round[StageTrace]) -> None:
        if self._watch is None:
            return
        if not self._watch.has_begun:
            self._watch.begin(found)
        self._end_looks()

    def seen(self) -> Collected | None:
        """What who watches has not taken yet."""
        return self._watch

    def look_away(self) -> None:
        """Record for who watches no longer."""
        self._watch = None
        self._end_looks()
        ends = self._switching is not None and self._trace is not None and self._trace.has_begun
        if self._trace is None or ends:
            self._ask(_nothing, False)

    def _end_looks(self) -> None:
        looking, self._looking = self._looking, []
        for future in looking:
            future.set_result(None)

    # ------------------------------------------------------------ for the driver

    def planned(self, plan: StepPlan) -> None:
        self.clock.belongs_to(plan.step_id)
        if self._trace is None and self._watch is None:
            return
        decodes = sum([len(part.tokens) == 1 and part.start > 0 for part in plan.steps])
        facts = StepFacts(plan.slot, plan.num_tokens, len(plan.steps), decodes)
        for reader in (self._trace, self._watch):
            if reader is not None:
                reader.planned(plan.step_id, facts)

    def take(self, answer: StageTrace) -> None:
        self._rounds.take(answer.stage, answer)

    def unanswered(self) -> tuple[float, int] | None:
        """Since when (monotonic seconds) an answer is awaited, and from which stage."""
        return self._rounds.unanswered()

    def fail(self, error: Exception) -> None:
        """Tell who waits that no trace will come."""
        self._rounds.clear()
        self._end_looks()
        if self._switching is not None:
            self._switching.set_exception(error)
            self._switching = None

    def _ask(self, then: Callable[[Round[StageTrace]], None], go_on: bool) -> None:
        def complete(found: Round[StageTrace]) -> None:
            for reader in (self._trace, self._watch):
                if reader is not None and reader.has_begun:
                    reader.add(found)
            then(found)

        self._rounds.begin(complete)
        self._request(TraceRequest(go_on))


def _nothing(found: Round[StageTrace]) -> None:
    pass


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
