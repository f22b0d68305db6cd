"""The real schedule, driven by modelled time.

``MicroBatchManager`` and ``GenerateSchedule`` are those of the engine, unchanged (or the schedule
is a rival, ``rivals.py``); here a driver and stages that only take time stand at their other end.
What waits for what is as in ``stage/loop.py`` and ``engine/driver.py``: a stage takes steps in the
order of their plans; each waits for its plan, for the stage before it, and on the first stage for
tokens that a plan left open; what is sent travels while the next step is computed; the driver
commits results and plans as much as it can.

Events are taken in the order of time, equal ones in the order in which they came up: so the same
input gives the same result.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

from ppinfer.messages import PENDING, SampledToken, StepPlan, StepResult
from ppinfer.planner.cost import StepSeconds
from ppinfer.planner.host import Host
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.recorder import Recorder
from ppinfer.planner.traffic import Arrival
from ppinfer.planner.work import StepWork
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.tuning import Tuning

_TOKEN, _END = 0, 1
"""What every draw gives, and what ends an output before its limit."""


class _Event(IntEnum):
    ARRIVAL = 0
    RESULT = 1  # at the driver
    BEGIN = 2  # of a step, on a host that stages share
    END = 3  # of a step, on a device of its own
    HOST = 4  # the first of a host's steps ends, unless something changed since


@dataclass(slots=True)
class _Step:
    """A step under way: when its plan is at the stages, the step whose tokens that left open (or
    -1), and what it takes on each stage."""

    plan: StepPlan
    planned: float
    waits_for: int
    parts: list[StepSeconds]
    rows: int
    threads: int


@dataclass(slots=True)
class _Stage:
    """``next`` is the step to be computed next, ``inputs`` when each step's hidden states come,
    ``link_free_at`` when what was sent before has left."""

    next: int = 0
    busy: bool = False
    free_at: float = 0.0
    begun: float = 0.0
    link_free_at: float = 0.0
    inputs: dict[int, float] = field(default_factory=dict)


class Schedule(Protocol):
    """What plans the steps of a ``MicroBatchManager``."""

    def next_plan(self) -> StepPlan | None:
        """Plan the next step and put it in flight; ``None`` if there can be none now."""
        ...


ScheduleMaker: TypeAlias = Callable[[MicroBatchManager, Tuning], Schedule]


def own_schedule(manager: MicroBatchManager, tuning: Tuning) -> GenerateSchedule:
    """The engine's."""
    return GenerateSchedule(manager, tuning.max_prefill_tokens, tuning, tuning.steps)


def simulate(
    model: PipelineModel,
    arrivals: Sequence[Arrival],
    *,
    trace: bool = False,
    schedule: ScheduleMaker = own_schedule,
) -> Outcome:
    """Run requests, in the order of their coming, through a pipeline.

    Raises:
        CapacityError: a request would not fit in the KV cache even alone.
    """
    return _Simulation(model, arrivals, trace, schedule).run()


class _Simulation:
    def __init__(
        self,
        model: PipelineModel,
        arrivals: Sequence[Arrival],
        trace: bool,
        schedule: ScheduleMaker,
    ) -> None:
        self._model = model
        self._arrivals = sorted(arrivals, key=lambda arrival: arrival.at)
        tuning = model.tuning
        self._manager = MicroBatchManager(
            tuning.num_slots,
            model.max_sequences,
            BlockPool(model.num_blocks, model.block_size),
            prefix_caching=False,
        )
        self._schedule = schedule(self._manager, tuning)
        self._kinds = {id(cost): cost for cost in model.stages}
        self._host = Host(model.cores)
        self._stages = [_Stage() for _ in model.stages]
        self._steps: dict[int, _Step] = {}
        self._drawn_by: dict[int, int] = {}  # the last step that draws for a sequence
        self._tokens_at: dict[int, float] = {}  # when a step's tokens are at the first stage
        self._events: list[tuple[float, int, _Event, int]] = []
        self._num_events = 0
        self._driver_free_at = 0.0
        self._next_arrival = 0
        self._record = Recorder(len(model.stages), self._arrivals, self._manager.pool, trace)

    def run(self) -> Outcome:
        self._arrive(0.0)
        while self._events:
            now, _, kind, which = heapq.heappop(self._events)
            if kind == _Event.END:
                self._end(now, which)
            elif kind == _Event.RESULT:
                self._result(now, which)
            elif kind == _Event.HOST:
                self._end_on_host(now, which)
            elif kind == _Event.BEGIN:
                self._begin_on_host(now, which)
            else:
                self._arrive(now)
        assert not self._manager.has_unfinished
        return self._record.outcome(self._manager.num_preemptions)

    def _post(self, at: float, kind: _Event, which: int = 0) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (at, self._num_events, kind, which))

    # ------------------------------------------------------------ the driver

    def _arrive(self, now: float) -> None:
        """Take in every request that has come by now."""
        arrivals, index = self._arrivals, self._next_arrival
        while index < len(arrivals) and arrivals[index].at <= now:
            self._manager.add(_request(index, arrivals[index]))
            index += 1
        self._next_arrival = index
        if index < len(arrivals):
            self._post(arrivals[index].at, _Event.ARRIVAL)
        self._fill(max(now, self._driver_free_at))

    def _result(self, now: float, step_id: int) -> None:
        """The driver takes a step's tokens in, as soon as it has time."""
        step = self._steps.pop(step_id)
        driver = self._model.driver
        start = max(now, self._driver_free_at)
        drawn = step.plan.sampled
        end = start + driver.step / 2 + driver.sequence * len(drawn) / 2
        arrivals, output = self._arrivals, self._record.output
        tokens = [
            SampledToken(seq, _END if output(seq) + 1 == arrivals[seq].new else _TOKEN)
            for seq in drawn
        ]
        updates = self._manager.commit(StepResult(step_id, tokens))
        self._record.committed(step_id, start, end, updates)
        self._fill(end)

    def _fill(self, now: float) -> None:
        """Plan as many steps as can run now."""
        driver = self._model.driver
        at = now
        while (plan := self._schedule.next_plan()) is not None:
            start, at = at, at + driver.step / 2 + driver.sequence * len(plan.steps) / 2
            self._steps[plan.step_id] = self._step(plan, at + driver.message)
            self._record.planned(plan, start, at)
        self._driver_free_at = at
        self._try(now, 0)

    def _step(self, plan: StepPlan, planned: float) -> _Step:
        work = StepWork.of(plan)
        waits_for, drawn_by = -1, self._drawn_by
        for step in plan.steps:
            if step.tokens[0] == PENDING:
                waits_for = max(waits_for, drawn_by[step.seq_id])
            if step.sample:
                drawn_by[step.seq_id] = plan.step_id
        seconds = {kind: cost.step(work, plan.threads) for kind, cost in self._kinds.items()}
        parts = [seconds[id(cost)] for cost in self._model.stages]
        return _Step(plan, planned, waits_for, parts, work.tokens, max(plan.threads, 1))

    # ------------------------------------------------------------ the stages

    def _try(self, now: float, index: int) -> None:
        """Let a stage go on with its next step, if it is known when that can begin."""
        stage = self._stages[index]
        step = self._steps.get(stage.next)
        if stage.busy or step is None:
            return
        arrives: float | None = 0.0
        if index:
            arrives = stage.inputs.pop(stage.next, None)
        elif step.waits_for >= 0:
            arrives = self._tokens_at.get(step.waits_for)
        if arrives is None:
            return
        stage.busy = True
        parts = step.parts[index]
        # What can be prepared before the input comes is done just before.
        begin = max(stage.free_at, step.planned, arrives - parts.prepare)
        self._record.waited(index, stage.next, stage.free_at, step.planned, begin)
        stage.begun = begin
        if not self._host.is_shared:
            self._post(begin + parts.total, _Event.END, index)
        elif begin > now:
            self._post(begin, _Event.BEGIN, index)
        else:
            self._begin_on_host(now, index)

    def _begin_on_host(self, now: float, index: int) -> None:
        step = self._steps[self._stages[index].next]
        self._host.begin(now, index, step.parts[index].total, step.threads)
        self._post_host()

    def _end_on_host(self, now: float, version: int) -> None:
        if version != self._host.version:
            return
        first = self._host.next_end()
        assert first is not None
        self._host.end(now, first[1])
        self._end(now, first[1])
        self._post_host()

    def _post_host(self) -> None:
        if (first := self._host.next_end()) is not None:
            self._post(first[0], _Event.HOST, self._host.version)

    def _end(self, now: float, index: int) -> None:
        """A stage is done with a step: what it made is sent, and the next one may begin."""
        stage, model = self._stages[index], self._model
        step_id = stage.next
        step = self._steps[step_id]
        self._record.worked(index, step_id, stage.begun, now, step.parts[index])
        stage.next, stage.busy, stage.free_at = step_id + 1, False, now
        if index < len(model.links):
            link = model.links[index]
            leaves = max(now, stage.link_free_at)
            stage.link_free_at = leaves + step.rows * model.row_bytes / link.bandwidth
            self._stages[index + 1].inputs[step_id] = stage.link_free_at + link.latency
            self._try(now, index + 1)
        else:
            back = model.back.latency if index else 0.0
            self._tokens_at[step_id] = now + back
            self._post(now + model.driver.message, _Event.RESULT, step_id)
            if index:
                self._try(now, 0)
        self._try(now, index)


def _request(index: int, arrival: Arrival) -> Request:
    return Request(
        index,
        (_TOKEN,) * arrival.prompt,
        SamplingParams(max_tokens=arrival.limit, ignore_eos=True),
        frozenset((_END,)),
        streamed=arrival.streamed,
    )
