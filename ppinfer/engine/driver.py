"""The driver: one thread that plans steps, commits results and hands out text.

It is the only authority over the pipeline, and never runs inside the consumer's loop: what a
request gains goes into a queue of its own, however slowly that queue is read.
"""

from __future__ import annotations

import copy
import functools
import os
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from ppinfer.engine.live import Item, LiveRequest, Sink
from ppinfer.engine.observer import Observer
from ppinfer.engine.report import EngineReport, StageLayout
from ppinfer.engine.state import EngineState, LiveState
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.tally import Tally
from ppinfer.engine.tracing import Tracer
from ppinfer.engine.window import Meter
from ppinfer.errors import EngineClosedError, PPInferError, StageError
from ppinfer.messages import StageStats, StageTrace, StatsRequest, StepResult
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager, TokenUpdate
from ppinfer.trace.clock import DriverActivity
from ppinfer.trace.model import Trace

_GRACE_SECONDS = 5.0
"""A stage that waits for another gives up first and names it; the driver waits this much longer."""

_CHECK_SECONDS = 0.5

_ResultT = TypeVar("_ResultT")


@dataclass(slots=True)
class _Outstanding:
    step_id: int
    since: float


class Driver:
    """Owns the supervisor and the schedule from ``start`` on; other threads only leave it notes."""

    def __init__(
        self,
        supervisor: Supervisor,
        manager: MicroBatchManager,
        schedule: GenerateSchedule,
        layouts: list[StageLayout],
        *,
        timeout: float,
    ) -> None:
        self._supervisor = supervisor
        self._manager = manager
        self._schedule = schedule
        self._layouts = layouts
        self._timeout = timeout
        self._live: dict[int, LiveRequest] = {}
        self._undelivered: list[TokenUpdate] = []
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outstanding: deque[_Outstanding] = deque()
        self._tracer = Tracer(layouts, supervisor.broadcast)
        self._clock = self._tracer.clock
        self._meter = Meter(
            layouts, lambda: supervisor.broadcast(StatsRequest()), self._clock.seconds
        )
        self._tally = Tally()
        self._observer = Observer(
            layouts, manager, supervisor, self._meter, self._tracer, self._tally, self._live
        )
        self._failure: PPInferError | None = None
        self._stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="ppinfer-driver", daemon=True)

    # ------------------------------------------------------------ for other threads

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Iterable[LiveRequest]) -> None:
        """Queue requests; their deltas, or the reason why none come, go to their sinks."""
        batch = list(requests)
        self._leave(lambda: self._admit(batch))

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Drop what is unfinished of these sequences; nothing more comes for them."""
        ids = list(seq_ids)
        self._leave(lambda: self._drop(ids))

    def report(self) -> EngineReport:
        """Figures of the run under way, or else of the last one.

        Raises:
            StageError: a stage failed before it could answer.
        """
        future: Future[EngineReport] = Future()
        self._leave(lambda: self._meter.ask(future))
        return self._wait(future)

    def trace(self, on: bool) -> Trace | None:
        """Begin a trace, or end it and return it.

        Raises:
            TraceError: one is being made already, or none.
            StageError: a stage failed before it could answer.
        """
        future: Future[Trace | None] = Future()
        self._leave(lambda: self._tracer.switch(on, future))
        return self._wait(future)

    def state(self, patience: float) -> EngineState:
        """What is known now. Stages have ``patience`` seconds to say how they are; of one that does
        not, the latest that it said is told.

        Raises:
            PPInferError: what ended the engine.
        """
        self._try(self._meter.refresh, patience)
        return self._call(self._observer.state)

    def live(self, patience: float) -> LiveState:
        """The state, and what stages did since the last call; the first one begins to record it."""
        self._try(self._observer.look, patience)
        return self._call(self._observer.live)

    def look_away(self) -> None:
        """Record for ``live`` no longer."""
        self._leave(self._tracer.look_away)

    def _try(self, ask: Callable[[Future[None]], None], patience: float) -> None:
        future: Future[None] = Future()
        self._leave(lambda: ask(future))
        wait([future], patience)

    def _call(self, work: Callable[[], _ResultT]) -> _ResultT:
        future: Future[_ResultT] = Future()
        self._leave(lambda: future.set_result(work()))
        return self._wait(future)

    def _wait(self, future: Future[_ResultT]) -> _ResultT:
        while True:
            try:
                return future.result(timeout=_CHECK_SECONDS)
            except TimeoutError:
                self.check()

    def check(self) -> None:
        """Raise what ended the driver, if anything did."""
        if self._pid != os.getpid():
            raise EngineClosedError(
                "This engine belongs to the process that made it; make one after the fork."
            )
        if self._failure is not None:
            raise _fresh(self._failure)
        if not self._thread.is_alive():
            raise EngineClosedError("This engine is closed; make a new one.")

    def wait(self) -> PPInferError:
        """Wait for the driver's end; returns why, ``EngineClosedError`` where it was closed."""
        self._thread.join()
        return _fresh(self._failure or EngineClosedError("The engine was closed."))

    def close(self) -> None:
        """Stop the thread and every stage; what is unfinished ends with ``EngineClosedError``.

        May be called again, from any thread. In a forked child it does nothing.
        """
        if self._pid != os.getpid():
            return
        if not self._thread.is_alive():
            self._supervisor.close()
            return
        self._leave(self._stop)
        if threading.current_thread() is not self._thread:  # where the engine was collected
            self._thread.join()

    def _leave(self, note: Callable[[], None]) -> None:
        if self._pid == os.getpid():
            self._notes.put(note)
            self._supervisor.wake()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        clock = self._clock
        read = functools.partial(clock.enter, DriverActivity.READ)
        try:
            while not self._stopping:
                clock.enter(DriverActivity.WAIT)
                for message in self._supervisor.poll(self._patience(), read):
                    if isinstance(message, StepResult):
                        clock.enter(DriverActivity.COMMIT, message.step_id)
                        self._commit(message)
                    elif isinstance(message, StageStats):
                        self._meter.take(message)
                    elif isinstance(message, StageTrace):
                        self._tracer.take(message)
                    else:
                        raise AssertionError(f"{type(message).__name__} while running")
                clock.enter(DriverActivity.ADMIT)
                while not self._notes.empty():
                    self._notes.get()()
                self._fill()
                self._deliver()
                if not self._manager.has_unfinished:
                    self._meter.end()
        except PPInferError as error:
            self._failure = error
        except BaseException as error:  # a panic of a native library is no Exception
            self._failure = StageError(f"The driver failed: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
        finally:
            self._supervisor.close()
            reason = self._failure or EngineClosedError("The engine was closed.")
            self._meter.fail(_fresh(reason))
            self._tracer.fail(_fresh(reason))
            for live in self._live.values():
                live.sink.put([_fresh(reason)])
            self._live.clear()

    def _fill(self) -> None:
        """Plan as many steps as can run now: filling the pipeline comes before waiting for it."""
        self._clock.enter(DriverActivity.PLAN)
        memory = self._manager.memory
        cached = memory.cached_tokens
        while (plan := self._schedule.next_plan()) is not None:
            self._tracer.planned(plan)
            self._supervisor.broadcast(plan)
            self._tally.planned(plan, self._live)
            if plan.new:
                self._meter.begin().cached_tokens += memory.cached_tokens - cached
                cached = memory.cached_tokens
            self._outstanding.append(_Outstanding(plan.step_id, time.monotonic()))
            self._clock.enter(DriverActivity.PLAN)

    def _commit(self, result: StepResult) -> None:
        updates = self._manager.commit(result)
        self._outstanding.popleft()
        if self._outstanding:
            # Steps queue behind each other: this one's turn begins now.
            self._outstanding[0].since = time.monotonic()
        if updates:  # a step of aborted sequences belongs to no run
            self._meter.begin().count_tokens(len(updates))
            self._undelivered += updates

    def _deliver(self) -> None:
        """Make text of what was committed, once the pipeline is full again."""
        if not self._undelivered:
            return
        self._clock.enter(DriverActivity.DELIVER)
        updates, self._undelivered = self._undelivered, []
        now = time.perf_counter()
        items: defaultdict[Sink, list[Item]] = defaultdict(list)
        for update in updates:
            sampled, reason = update.sampled, update.finish_reason
            live = self._live.get(sampled.seq_id)
            if live is None:  # it ended with an earlier token of these
                continue
            try:
                delta = live.advance(sampled, reason)
            except Exception as error:  # it is this request's alone
                self._drop([sampled.seq_id], "error")
                items[live.sink].append(_no_text(error))
                continue
            self._tally.token(live, now)
            if delta.finish_reason is not None:
                if reason is None:
                    self._manager.finish(sampled.seq_id, delta.finish_reason)
                del self._live[sampled.seq_id]
                self._tally.end(live, delta.finish_reason)
            items[live.sink].append(delta)
        for sink, batch in items.items():
            sink.put(batch)

    def _patience(self) -> float | None:
        """Seconds until the oldest answer is overdue; ``None`` while none is awaited.

        Raises:
            StageError: it is overdue.
        """
        if self._outstanding:
            oldest = self._outstanding[0]
            since, stage = oldest.since, len(self._layouts) - 1
            what = f"finish step {oldest.step_id}"
        elif (reading := self._meter.unanswered()) is not None:
            since, stage = reading
            what = "say where its time went"
        elif (recording := self._tracer.unanswered()) is not None:
            since, stage = recording
            what = "hand over its trace"
        else:
            return None
        limit = self._timeout + _GRACE_SECONDS
        left = since + limit - time.monotonic()
        if left <= 0:
            raise StageError(f"Stage {stage} did not {what} within {limit:g} s.", stage=stage)
        return left

    # ------------------------------------------------------------ notes

    def _admit(self, batch: list[LiveRequest]) -> None:
        for live in batch:
            try:
                self._manager.add(live.request)
            except PPInferError as error:
                live.sink.put([error])
                self._tally.end(live, "error")
                continue
            self._live[live.request.seq_id] = live
            self._meter.begin().prompt_tokens += len(live.request.prompt_token_ids)

    def _drop(self, seq_ids: list[int], how: str = "abort") -> None:
        for seq_id in seq_ids:
            if (live := self._live.pop(seq_id, None)) is not None:
                self._manager.finish(seq_id, "abort")
                self._tally.end(live, how)

    def _stop(self) -> None:
        self._stopping = True


def _no_text(error: Exception) -> PPInferError:
    failure = PPInferError(
        f"A request's tokens could not be made text: {type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure


def _fresh(error: PPInferError) -> PPInferError:
    """The same error to be raised once more: a traceback grows with every raise, and keeps alive
    whatever its frames refer to."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again
