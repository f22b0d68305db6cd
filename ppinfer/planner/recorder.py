"""Keeps count of a simulated run, and where it is wanted a trace of the form of a measured one."""

from __future__ import annotations

from collections.abc import Sequence

from ppinfer.messages import StepPlan
from ppinfer.planner.cost import StepSeconds
from ppinfer.planner.outcome import Outcome, Percentiles, StageUse
from ppinfer.planner.step import Step
from ppinfer.planner.traffic import Arrival
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.micro_batch import TokenUpdate
from ppinfer.trace.model import Lane, Span, StepFacts, Trace


class _Use:
    """One stage's seconds so far; ``last`` is the end of its latest step."""

    def __init__(self) -> None:
        self.prepare = self.compute = self.sample = self.send = 0.0
        self.ramp_up = self.no_request = self.wait_plan = self.wait_input = 0.0
        self.steps = 0
        self.last = 0.0


class Recorder:
    """``arrivals`` in the order of their sequence ids; times are seconds from the beginning."""

    def __init__(
        self, num_stages: int, arrivals: Sequence[Arrival], pool: BlockPool, trace: bool
    ) -> None:
        self._arrivals, self._pool = arrivals, pool
        self._uses = [_Use() for _ in range(num_stages)]
        self._outputs = [0] * len(arrivals)
        self._latest = [0.0] * len(arrivals)
        self._first: list[float] = []
        self._between: list[float] = []
        self._whole: list[float] = []
        self._rows = self._steps = self._in_flight = 0
        self._idle_since = 0.0
        self._end = 0.0
        self._kv_peak, self._kv_seconds, self._kv_since, self._kv_used = 0, 0.0, 0.0, 0
        self._trace = _TraceMaker(num_stages) if trace else None

    def output(self, seq_id: int) -> int:
        """Tokens that a sequence has got."""
        return self._outputs[seq_id]

    # ------------------------------------------------------------ the driver

    def planned(self, plan: StepPlan, start: float, end: float) -> float:
        """Returns for how long nothing had been in flight."""
        gap = 0.0 if self._in_flight else start - self._idle_since
        self._in_flight += 1
        self._steps += 1
        self._rows += len(plan.steps)
        self._look_at_memory(start)
        if self._trace is not None:
            self._trace.planned(plan, start, end)
        return gap

    def committed(
        self, step_id: int, start: float, end: float, updates: Sequence[TokenUpdate]
    ) -> None:
        self._in_flight -= 1
        self._idle_since = self._end = end
        for update in updates:
            seq_id = update.seq_id
            self._outputs[seq_id] += 1
            if self._outputs[seq_id] == 1:
                self._first.append(end - self._arrivals[seq_id].at)
            else:
                self._between.append(end - self._latest[seq_id])
            self._latest[seq_id] = end
            if update.finish_reason is not None:
                self._whole.append(end - self._arrivals[seq_id].at)
        self._look_at_memory(end)
        if self._trace is not None:
            self._trace.committed(step_id, start, end)

    def _look_at_memory(self, now: float) -> None:
        self._kv_seconds += self._kv_used * (now - self._kv_since)
        self._kv_since, self._kv_used = now, self._pool.num_used
        self._kv_peak = max(self._kv_peak, self._kv_used)

    # ------------------------------------------------------------ the stages

    def passed(
        self, stage: int, step: Step, since: float, start: float, end: float, parts: StepSeconds
    ) -> None:
        """A stage that had nothing to do since some time did its part of a step.

        Causes of waits are told apart as in ``trace/analysis.py``.

        Args:
            start: when it had the input.
        """
        use, for_plan, prepare = self._uses[stage], step.planned - since, parts.prepare
        if not use.steps:
            use.ramp_up = start - prepare
        elif for_plan > 0:
            if 2 * step.gap > for_plan:  # most of the wait
                use.no_request += for_plan
            else:
                use.wait_plan += for_plan
            use.wait_input += start - prepare - step.planned
        else:
            use.wait_input += start - prepare - since
        use.prepare += prepare
        use.compute += parts.compute
        use.sample += parts.sample
        use.send += parts.send
        use.steps += 1
        use.last = end
        if self._trace is not None:
            self._trace.passed(stage, step, since, start, end, parts)

    # ------------------------------------------------------------ the end

    def outcome(self, preemptions: int) -> Outcome:
        start = self._arrivals[0].at if self._arrivals else 0.0
        seconds = self._end - start
        return Outcome(
            seconds=seconds,
            requests=len(self._arrivals),
            prompt_tokens=sum(arrival.prompt for arrival in self._arrivals),
            new_tokens=sum(self._outputs),
            first_token=Percentiles.of(self._first),
            between_tokens=Percentiles.of(self._between),
            whole=Percentiles.of(self._whole),
            kv_peak=self._kv_peak / self._pool.num_blocks,
            kv_mean=self._kv_seconds / (seconds * self._pool.num_blocks),
            steps=self._steps,
            sequences_a_step=self._rows / max(self._steps, 1),
            preemptions=preemptions,
            stages=tuple(self._stage(use, start) for use in self._uses),
            trace=None if self._trace is None else self._trace.trace(),
        )

    def _stage(self, use: _Use, start: float) -> StageUse:
        return StageUse(
            work={"compute": use.compute, "sample": use.sample, "prepare": use.prepare},
            waits={
                "ramp up": use.ramp_up - start,
                "drain": self._end - use.last,
                "no request": use.no_request,
                "wait_plan": use.wait_plan,
                "wait_input": use.wait_input,
                "send": use.send,
            },
            steps=use.steps,
            seconds=self._end - start,
        )


class _TraceMaker:
    def __init__(self, num_stages: int) -> None:
        self._driver = Lane("driver")
        self._stages = [Lane(f"stage {index}") for index in range(num_stages)]
        self._facts: dict[int, StepFacts] = {}

    def planned(self, plan: StepPlan, start: float, end: float) -> None:
        decodes = sum(len(step.tokens) == 1 and step.start > 0 for step in plan.steps)
        self._facts[plan.step_id] = StepFacts(plan.slot, plan.num_tokens, len(plan.steps), decodes)
        self._drive("plan", plan.step_id, start, end)

    def committed(self, step_id: int, start: float, end: float) -> None:
        self._drive("commit", step_id, start, end)

    def _drive(self, activity: str, step_id: int, start: float, end: float) -> None:
        _append(self._driver, "wait", -1, start)
        _append(self._driver, activity, step_id, end)

    def passed(
        self, stage: int, step: Step, since: float, start: float, end: float, parts: StepSeconds
    ) -> None:
        lane = self._stages[stage]
        _append(lane, "wait_plan", -1, step.planned)
        _append(lane, "prepare", step.id, max(since, step.planned) + parts.prepare)
        _append(lane, "wait_input", step.id, start)
        _append(lane, "compute", step.id, start + parts.compute)
        _append(lane, "sample", step.id, end - parts.send)
        _append(lane, "send", step.id, end)

    def trace(self) -> Trace:
        end = max(
            (lane.spans[-1].end for lane in (self._driver, *self._stages) if lane.spans), default=0
        )
        for lane in self._stages:
            _append(lane, "wait_plan", -1, end / 1e9)
        return Trace(self._stages, self._driver, self._facts)


def _append(lane: Lane, activity: str, step: int, end: float) -> None:
    """A span from the end of the last one; nothing where it has no length."""
    start = lane.spans[-1].end if lane.spans else 0
    until = round(end * 1e9)
    if until > start:
        lane.spans.append(Span(activity, step, start, until))
