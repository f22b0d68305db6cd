"""The driver: one thread that plans steps, commits results and hands out text.

It is the only authority over the pipeline, and never runs inside the consumer's loop: what a
request gains goes into a queue of its own, however slowly that queue is read.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from ppinfer.engine.live import Item, LiveRequest, Sink
from ppinfer.engine.masks import Masks
from ppinfer.engine.note_thread import NoteThread
from ppinfer.engine.observer import Observer
from ppinfer.engine.report import EngineReport, StageLayout
from ppinfer.engine.state import EngineState, LiveState
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.tally import Tally
from ppinfer.engine.tracing import Tracer
from ppinfer.engine.window import Meter
from ppinfer.errors import PPInferError, StageError
from ppinfer.messages import StageStats, StageTrace, StatsRequest, StepResult
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager, TokenUpdate
from ppinfer.trace.clock import DriverActivity
from ppinfer.trace.model import Trace

_GRACE_SECONDS = 5.0
"""A stage that waits for another gives up first and names it; the driver waits this much longer."""


@dataclass(slots=True)
class _Outstanding:
    step_id: int
    since: float


class Driver(NoteThread):
    """Owns the supervisor and the schedule from ``start`` on; other threads only leave it notes."""

    def __init__(
        self,
        supervisor: Supervisor,
        manager: MicroBatchManager,
        schedule: GenerateSchedule,
        layouts: list[StageLayout],
        *,
        timeout: float,
        masks: Masks | None = None,
    ) -> None:
        super().__init__("ppinfer-driver", supervisor.wake)
        self._supervisor = supervisor
        self._manager = manager
        self._schedule = schedule
        self._layouts = layouts
        self._timeout = timeout
        self._masks = masks or Masks()
        self._live: dict[int, LiveRequest] = {}
        self._undelivered: list[TokenUpdate] = []
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
        self._stopping = False

    # ------------------------------------------------------------ for other threads

    def submit(self, requests: Iterable[LiveRequest]) -> None:
        """Queue requests; their deltas, or the reason why none come, go to their sinks."""
        batch = list(requests)
        self.leave(lambda: self._admit(batch))

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Drop what is unfinished of these sequences; nothing more comes for them."""
        ids = list(seq_ids)
        self.leave(lambda: self._drop(ids))

    def report(self) -> EngineReport:
        """Figures of the run under way, or else of the last one.

        Raises:
            StageError: a stage failed before it could answer.
        """
        return self.ask(self._meter.ask)

    def trace(self, on: bool) -> Trace | None:
        """Begin a trace, or end it and return it.

        Raises:
            TraceError: one is being made already, or none.
            StageError: a stage failed before it could answer.
        """
        return self.ask(lambda future: self._tracer.switch(on, future))

    def state(self, patience: float) -> EngineState:
        """What is known now. Stages have ``patience`` seconds to say how they are; of one that does
        not, the latest that it said is told.

        Raises:
            PPInferError: what ended the engine.
        """
        self.try_for(patience, self._meter.refresh)
        return self.call(self._observer.state)

    def live(self, patience: float) -> LiveState:
        """The state, and what stages did since the last call; the first one begins to record it."""
        self.try_for(patience, self._observer.look)
        return self.call(self._observer.live)

    def look_away(self) -> None:
        """Record for ``live`` no longer."""
        self.leave(self._tracer.look_away)

    def close(self) -> None:
        """Stop the thread and every stage; what is unfinished ends with ``EngineClosedError``.

        May be called again, from any thread. In a forked child it does nothing.
        """
        if self.is_foreign:
            return
        if not self.is_running:
            self._supervisor.close()
            return
        self.leave(self._stop)
        self.join()  # not where the engine was collected on this very thread

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
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
                self.read_notes()
                self._fill()
                self._deliver()
                if not self._manager.has_unfinished:
                    self._meter.end()
        except PPInferError as error:
            self.failure = error
        except BaseException as error:  # a panic of a native library is no Exception
            self.failure = StageError(f"The driver failed: {type(error).__name__}: {error}")
            self.failure.__cause__ = error
        finally:
            self._supervisor.close()
            self._masks.close()
            self._meter.fail(self.reason)
            self._tracer.fail(self.reason)
            for live in self._live.values():
                live.sink.put([self.reason])
            self._live.clear()

    def _fill(self) -> None:
        """Plan as many steps as can run now: filling the pipeline comes before waiting for it."""
        self._clock.enter(DriverActivity.PLAN)
        self._settle_masks()
        memory = self._manager.memory
        cached = memory.cached_tokens
        while (plan := self._schedule.next_plan()) is not None:
            self._tracer.planned(plan)
            self._supervisor.broadcast(plan)
            if plan.new:
                self._tally.planned(plan, self._live)
                self._meter.begin().cached_tokens += memory.cached_tokens - cached
                cached = memory.cached_tokens
            self._outstanding.append(_Outstanding(plan.step_id, time.monotonic()))
            self._clock.enter(DriverActivity.PLAN)

    def _settle_masks(self) -> None:
        self._masks.settle(self._supervisor.wake)
        for seq_id, error in self._masks.failures():
            live = self._live.get(seq_id)
            if live is not None:
                self._drop([seq_id], "error")
                live.sink.put([error])

    def _commit(self, result: StepResult) -> None:
        updates = self._manager.commit(result)
        self._outstanding.popleft()
        if self._outstanding:
            # Steps queue behind each other: this one's turn begins now.
            self._outstanding[0].since = time.monotonic()
        if updates:  # a step of aborted sequences belongs to no run
            drawn = sum([update.sampled is not None for update in updates])
            self._meter.begin().count_tokens(drawn)
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
            seq_id, reason = update.seq_id, update.finish_reason
            live = self._live.get(seq_id)
            if live is None:  # it ended with an earlier token of these
                continue
            try:
                delta = live.advance(update.sampled, reason, update.prompt)
            except Exception as error:  # it is this request's alone
                self._drop([seq_id], "error")
                items[live.sink].append(_no_text(error))
                continue
            if update.sampled is not None:
                self._tally.token(live, now)
            if delta.finish_reason is not None:
                if reason is None:
                    self._manager.finish(seq_id, delta.finish_reason)
                del self._live[seq_id]
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
