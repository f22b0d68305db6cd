"""The driver: one thread that plans steps, commits results and hands out text.

It is the only authority over the pipeline, and never runs inside the consumer's loop: what a
request gains goes into a queue of its own, however slowly that queue is read.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from ppinfer.engine.live import LiveRequest
from ppinfer.engine.report import EngineReport, StageLayout
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.window import Meter
from ppinfer.errors import EngineClosedError, PPInferError, StageError
from ppinfer.messages import StageStats, StatsRequest, StepResult
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager

_GRACE_SECONDS = 5.0
"""A stage that waits for another gives up first and names it; the driver waits this much longer."""

_CHECK_SECONDS = 0.5


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
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outstanding: deque[_Outstanding] = deque()
        self._meter = Meter(layouts, lambda: supervisor.broadcast(StatsRequest()))
        self._failure: PPInferError | None = None
        self._stopping = False
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
        while True:
            try:
                return future.result(timeout=_CHECK_SECONDS)
            except TimeoutError:
                self.check()

    def check(self) -> None:
        """Raise what ended the driver, if anything did."""
        if self._failure is not None:
            raise self._failure
        if not self._thread.is_alive():
            raise EngineClosedError("This engine is closed; make a new one.")

    def close(self) -> None:
        """Stop the thread and every stage; what is unfinished ends with ``EngineClosedError``."""
        if self._thread.is_alive():
            self._leave(self._stop)
            self._thread.join()
        else:
            self._supervisor.close()

    def _leave(self, note: Callable[[], None]) -> None:
        self._notes.put(note)
        self._supervisor.wake()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                for message in self._supervisor.poll(self._patience()):
                    if isinstance(message, StepResult):
                        self._commit(message)
                    elif isinstance(message, StageStats):
                        self._meter.take(message)
                    else:
                        raise AssertionError(f"{type(message).__name__} while running")
                while not self._notes.empty():
                    self._notes.get()()
                self._fill()
        except PPInferError as error:
            self._failure = error
        except Exception as error:
            self._failure = StageError(f"The driver failed: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
        finally:
            self._supervisor.close()
            reason = self._failure or EngineClosedError("The engine was closed.")
            self._meter.fail(reason)
            for live in self._live.values():
                live.sink.put(reason)
            self._live.clear()

    def _fill(self) -> None:
        """Plan as many steps as can run now: filling the pipeline comes before waiting for it."""
        while (plan := self._schedule.next_plan()) is not None:
            self._supervisor.broadcast(plan)
            if plan.new:
                new = {sequence.seq_id for sequence in plan.new}
                cached = sum(step.start for step in plan.steps if step.seq_id in new)
                self._meter.begin().cached_tokens += cached
            self._outstanding.append(_Outstanding(plan.step_id, time.monotonic()))
        if not self._manager.has_unfinished:
            self._meter.end()

    def _commit(self, result: StepResult) -> None:
        updates = self._manager.commit(result)
        self._outstanding.popleft()
        if self._outstanding:
            # Steps queue behind each other: this one's turn begins now.
            self._outstanding[0].since = time.monotonic()
        if updates:  # a step of aborted sequences belongs to no run
            self._meter.begin().count_tokens(len(updates))
        for sampled, reason in updates:
            live = self._live[sampled.seq_id]
            delta = live.advance(sampled, reason)
            if delta.finish_reason is not None:
                if reason is None:
                    self._manager.finish(sampled.seq_id, delta.finish_reason)
                del self._live[sampled.seq_id]
            live.sink.put(delta)

    def _patience(self) -> float | None:
        """Seconds until the oldest step is overdue; ``None`` while nothing is under way."""
        if not self._outstanding:
            return None
        overdue = self._outstanding[0].since + self._timeout + _GRACE_SECONDS
        left = overdue - time.monotonic()
        if left <= 0:
            last = len(self._layouts) - 1
            raise StageError(
                f"Stage {last} did not finish step {self._outstanding[0].step_id} within "
                f"{self._timeout + _GRACE_SECONDS:g} s.",
                stage=last,
            )
        return left

    # ------------------------------------------------------------ notes

    def _admit(self, batch: list[LiveRequest]) -> None:
        for live in batch:
            try:
                self._manager.add(live.request)
            except PPInferError as error:
                live.sink.put(error)
                continue
            self._live[live.request.seq_id] = live
            self._meter.begin().prompt_tokens += len(live.request.prompt_token_ids)

    def _drop(self, seq_ids: list[int]) -> None:
        for seq_id in seq_ids:
            if self._live.pop(seq_id, None) is not None:
                self._manager.finish(seq_id, "abort")

    def _stop(self) -> None:
        self._stopping = True
