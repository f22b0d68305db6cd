"""How steps pass through the stages, in modelled time.

What waits for what is as in ``stage/loop.py``: a stage takes steps in the order of their plans;
each waits for its plan, is prepared, and waits for what the stage before sends, or on the first
stage for tokens that its plan left open; what is sent travels while the next step is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from ppinfer.planner.events import Events
from ppinfer.planner.host import Host
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.recorder import Recorder
from ppinfer.planner.step import Step


class Stages(Protocol):
    """Stages that were told whom to call when the last one is done with a step."""

    def take(self, now: float, step: Step) -> None:
        """The next step was planned."""
        ...


def stages_of(
    model: PipelineModel, record: Recorder, events: Events, done: Callable[[float, int], None]
) -> Stages:
    """``done`` is called with a time, now or later, and the step whose tokens were drawn then."""
    if math.isinf(model.cores):
        return _OwnDevices(model, record, done)
    return _SharedHost(model, record, events, done)


class _OwnDevices:
    """Every stage has a device of its own, which nobody else disturbs: so with a step's plan it is
    known when it will be done everywhere."""

    def __init__(
        self, model: PipelineModel, record: Recorder, done: Callable[[float, int], None]
    ) -> None:
        self._model, self._record, self._done = model, record, done
        self._free_at = [0.0] * len(model.stages)
        self._links_free_at = [0.0] * len(model.links)
        self._links = [(model.row_bytes / link.bandwidth, link.latency) for link in model.links]
        self._tokens_at: list[float] = []  # when a step's tokens are at the first stage

    def take(self, now: float, step: Step) -> None:
        free_at, links_free_at, links = self._free_at, self._links_free_at, self._links
        passed, planned, rows = self._record.passed, step.planned, step.rows
        arrives = self._tokens_at[step.waits_for] if step.waits_for >= 0 else 0.0
        last = len(links)
        end = now
        for index, parts in enumerate(step.parts):
            since = free_at[index]
            prepared = (planned if planned > since else since) + parts.prepare
            start = arrives if arrives > prepared else prepared
            free_at[index] = end = start + parts.after_input
            passed(index, step, since, start, end, parts)
            if index < last:
                each, latency = links[index]
                leaves = links_free_at[index]
                links_free_at[index] = (leaves if leaves > end else end) + rows * each
                arrives = links_free_at[index] + latency
        self._tokens_at.append(end + (self._model.back.latency if last else 0.0))
        self._done(end, step.id)


class _Doing(Enum):
    NOTHING = 0
    PREPARING = 1
    WAITING = 2  # for its input
    COMPUTING = 3


@dataclass(slots=True)
class _Stage:
    """``next`` is the step to be computed next, ``inputs`` when each step's hidden states come,
    ``link_free_at`` when what was sent before has left; then, when the stage got so far."""

    next: int = 0
    doing: _Doing = _Doing.NOTHING
    inputs: dict[int, float] = field(default_factory=dict)
    link_free_at: float = 0.0
    free_at: float = 0.0
    begun: float = 0.0
    prepared: float = 0.0
    started: float = 0.0


class _SharedHost:
    """Stages share the cores of a host: each slows the others down."""

    def __init__(
        self,
        model: PipelineModel,
        record: Recorder,
        events: Events,
        done: Callable[[float, int], None],
    ) -> None:
        self._model, self._record, self._events, self._done = model, record, events, done
        self._host = Host(model.cores)
        self._stages = [_Stage() for _ in model.stages]
        self._steps: dict[int, Step] = {}
        self._tokens_at: list[float] = []

    def take(self, now: float, step: Step) -> None:
        self._steps[step.id] = step
        for index in range(len(self._stages)):
            self._go_on(now, index)

    def _go_on(self, now: float, index: int) -> None:
        """Let a stage begin or go on with its next step, if it can."""
        stage = self._stages[index]
        step = self._steps.get(stage.next)
        if step is None:
            return
        if stage.doing is _Doing.NOTHING and step.planned <= now:
            stage.doing, stage.begun = _Doing.PREPARING, now
            self._occupy(now, index, step.parts[index].prepare, 1)
        elif stage.doing is _Doing.NOTHING:
            self._events.post(step.planned, self._go_on, index)
        elif stage.doing is _Doing.WAITING:
            arrives = self._arrival(index, step)
            if arrives is None:
                return
            if arrives <= now:
                stage.doing, stage.started = _Doing.COMPUTING, now
                self._occupy(now, index, step.parts[index].after_input, step.threads)
            else:
                self._events.post(arrives, self._go_on, index)

    def _arrival(self, index: int, step: Step) -> float | None:
        """When a step's input is there; ``None`` where nobody knows yet."""
        if index:
            return self._stages[index].inputs.get(step.id)
        if step.waits_for < 0:
            return 0.0
        tokens_at = self._tokens_at
        return tokens_at[step.waits_for] if step.waits_for < len(tokens_at) else None

    def _occupy(self, now: float, index: int, seconds: float, threads: int) -> None:
        self._host.begin(now, index, seconds, threads)
        self._post()

    def _post(self) -> None:
        """When the first of the stages will be done, unless something changes until then."""
        if (first := self._host.next_end()) is not None:
            self._events.post(first[0], self._stop, self._host.version)

    def _stop(self, now: float, version: int) -> None:
        if version != self._host.version:
            return
        first = self._host.next_end()
        assert first is not None
        index = first[1]
        self._host.end(now, index)
        stage = self._stages[index]
        if stage.doing is _Doing.PREPARING:
            stage.doing, stage.prepared = _Doing.WAITING, now
            self._go_on(now, index)
        else:
            self._end(now, index)
        self._post()

    def _end(self, now: float, index: int) -> None:
        """A stage is done with a step: what it made is sent, and the next one may begin."""
        stage, model = self._stages[index], self._model
        step = self._steps[stage.next]
        parts = step.parts[index].stretched(stage.prepared - stage.begun, now - stage.started)
        self._record.passed(index, step, stage.free_at, stage.started, now, parts)
        stage.next, stage.doing, stage.free_at = step.id + 1, _Doing.NOTHING, now
        stage.inputs.pop(step.id, None)
        if index < len(model.links):
            link = model.links[index]
            leaves = max(now, stage.link_free_at)
            stage.link_free_at = leaves + step.rows * model.row_bytes / link.bandwidth
            self._stages[index + 1].inputs[step.id] = stage.link_free_at + link.latency
            self._go_on(now, index + 1)
        else:
            del self._steps[step.id]
            self._tokens_at.append(now + (model.back.latency if index else 0.0))
            self._done(now, step.id)
            if index:
                self._go_on(now, 0)
        self._go_on(now, index)
