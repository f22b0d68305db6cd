"""The real schedule, driven by modelled time.

``MicroBatchManager`` and ``GenerateSchedule`` are those of the engine, unchanged (or the schedule
is a rival, ``rivals.py``); here a driver and stages that only take time stand at their other end.
As in ``engine/driver.py``, the driver commits results and plans as much as it can; what stages wait
for, ``stages.py`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ppinfer.messages import PENDING, SampledToken, StepPlan, StepResult
from ppinfer.planner.events import Events
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.recorder import Recorder
from ppinfer.planner.stages import stages_of
from ppinfer.planner.step import Step
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
    assert arrivals, "at least one request"
    return _Simulation(model, arrivals, trace, schedule).run()


class _Simulation:
    def __init__(
        self,
        model: PipelineModel,
        arrivals: Sequence[Arrival],
        trace: bool,
        schedule: ScheduleMaker,
    ) -> None:
        self._driver = model.driver
        self._costs = list(dict.fromkeys(model.stages))  # equal stages take equally long
        self._cost_of = [self._costs.index(cost) for cost in model.stages]
        self._arrivals = sorted(arrivals, key=lambda arrival: arrival.at)
        tuning = model.tuning
        self._manager = MicroBatchManager(
            tuning.num_slots,
            model.max_sequences,
            BlockPool(model.num_blocks, model.block_size),
            prefix_caching=False,
        )
        self._schedule = schedule(self._manager, tuning)
        self._record = Recorder(len(model.stages), self._arrivals, self._manager.pool, trace)
        self._events = Events()
        self._stages = stages_of(model, self._record, self._events, self._done)
        self._plans: dict[int, StepPlan] = {}  # in flight
        self._drawn_by: dict[int, int] = {}  # the last step that draws for a sequence
        self._driver_free_at = 0.0
        self._next_arrival = 0

    def run(self) -> Outcome:
        self._events.post(self._arrivals[0].at, self._arrive)
        self._events.run()
        assert not self._manager.has_unfinished
        return self._record.outcome(self._manager.num_preemptions)

    def _arrive(self, now: float, _: int) -> None:
        """Take in every request that has come by now."""
        arrivals, index = self._arrivals, self._next_arrival
        while index < len(arrivals) and arrivals[index].at <= now:
            self._manager.add(_request(index, arrivals[index]))
            index += 1
        self._next_arrival = index
        if index < len(arrivals):
            self._events.post(arrivals[index].at, self._arrive)
        self._fill(now, max(now, self._driver_free_at))

    def _done(self, now: float, step_id: int) -> None:
        """The last stage sends the tokens of a step."""
        self._events.post(now + self._driver.message, self._result, step_id)

    def _result(self, now: float, step_id: int) -> None:
        """The driver takes a step's tokens in, as soon as it has time."""
        driver, drawn = self._driver, self._plans.pop(step_id).sampled
        start = max(now, self._driver_free_at)
        end = start + driver.step / 2 + driver.sequence * len(drawn) / 2
        arrivals, output = self._arrivals, self._record.output
        tokens = [
            SampledToken(seq, _END if output(seq) + 1 == arrivals[seq].new else _TOKEN)
            for seq in drawn
        ]
        updates = self._manager.commit(StepResult(step_id, tokens))
        self._record.committed(step_id, start, end, updates)
        self._fill(now, end)

    def _fill(self, now: float, at: float) -> None:
        """Plan as many steps as can run now; the driver has time for it from ``at`` on."""
        driver = self._driver
        while (plan := self._schedule.next_plan()) is not None:
            start, at = at, at + driver.step / 2 + driver.sequence * len(plan.steps) / 2
            gap = self._record.planned(plan, start, at)
            self._plans[plan.step_id] = plan
            self._stages.take(now, self._step(plan, at + driver.message, gap))
        self._driver_free_at = at

    def _step(self, plan: StepPlan, planned: float, gap: float) -> Step:
        work = StepWork.of(plan)
        waits_for, drawn_by = -1, self._drawn_by
        for step in plan.steps:
            if step.tokens[0] == PENDING:
                waits_for = max(waits_for, drawn_by[step.seq_id])
            if step.sample:
                drawn_by[step.seq_id] = plan.step_id
        seconds = [cost.step(work, plan.threads) for cost in self._costs]
        parts = [seconds[index] for index in self._cost_of]
        return Step(plan.step_id, planned, gap, waits_for, parts, work.tokens, max(plan.threads, 1))


def _request(index: int, arrival: Arrival) -> Request:
    return Request(
        index,
        (_TOKEN,) * arrival.prompt,
        SamplingParams(max_tokens=arrival.limit, ignore_eos=True),
        frozenset((_END,)),
        streamed=arrival.streamed,
    )
