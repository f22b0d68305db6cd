"""The stage's endless loop: take a plan, take its input, compute, hand the outcome on.

Receives are posted for the next few plans before the current one is computed, and sends are not
awaited, so that data moves while the stage computes. Plans run ahead of results: the ids that the
last stage draws go straight to the first one, which puts them where a plan left a place for them.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ppinfer.comm.links import Links
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.comm.transport import Receive
from ppinfer.messages import (
    PENDING,
    Message,
    PromptLogprobs,
    Shutdown,
    StatsRequest,
    StepPlan,
    StepResult,
    ToStage,
    TraceRequest,
)
from ppinfer.stage.clock import Activity, StageClock
from ppinfer.stage.device import resident_bytes
from ppinfer.stage.runner import StageRunner
from ppinfer.stage.token_feed import TokenFeed


@dataclass(slots=True)
class _Pending:
    message: ToStage
    receive: Receive | None = None


class StageLoop:
    """Knows plans, links and the runner; ``inbox`` is filled by someone else, ``emit`` reports."""

    def __init__(
        self,
        runner: StageRunner,
        links: Links,
        manager: PipelineStageManager,
        inbox: queue.SimpleQueue[ToStage],
        emit: Callable[[Message], None],
        *,
        hidden_size: int,
        recv_ahead: int,
        most_in_flight: int,
    ) -> None:
        self._runner = runner
        self._links = links
        self._manager = manager
        self._inbox = inbox
        self._emit = emit
        self._hidden_size = hidden_size
        self._recv_ahead = recv_ahead
        self._pending: deque[_Pending] = deque()
        self._clock = StageClock()
        self._feed = TokenFeed(links.token_inbox, most_pending=most_in_flight)

    @torch.inference_mode()
    def run(self) -> None:
        """Return once told to shut down, when everything sent has left.

        Raises:
            StageError: a plan was refused, or a neighbour was lost.
        """
        while True:
            pending = self._next()
            message = pending.message
            if isinstance(message, StepPlan):
                self._step(message, pending.receive)
            elif isinstance(message, StatsRequest):
                self._emit(self._clock.stats(self._manager.stage, resident_bytes()))
            elif isinstance(message, TraceRequest):
                self._emit(self._clock.trace(message.on, self._manager.stage))
            elif isinstance(message, Shutdown):
                break
            else:
                raise AssertionError(f"{type(message).__name__} came while running")
        for outbox in (self._links.outbox, self._links.token_outbox):
            if outbox is not None:
                outbox.flush()

    def _next(self) -> _Pending:
        """The oldest message, with receives posted for the plans that are here already."""
        self._clock.enter(Activity.PREPARE)
        if not self._pending:
            self._clock.enter(Activity.WAIT_PLAN)
            self._pending.append(_Pending(self._inbox.get()))
            self._clock.enter(Activity.PREPARE)
        while not self._inbox.empty():
            self._pending.append(_Pending(self._inbox.get()))
        if self._links.inbox is not None:
            self._post_receives()
        return self._pending.popleft()

    def _post_receives(self) -> None:
        assert self._links.inbox is not None
        posted = 0
        for pending in self._pending:
            if posted > self._recv_ahead:  # the plan that is computed next, and those ahead of it
                break
            if isinstance(pending.message, StepPlan):
                posted += 1
                if pending.receive is None:
                    shape = (pending.message.num_tokens, self._hidden_size)
                    pending.receive = self._links.inbox.post(shape)

    def _step(self, plan: StepPlan, receive: Receive | None) -> None:
        clock, step_id = self._clock, plan.step_id
        clock.enter(Activity.PREPARE, step_id)
        step = self._runner.begin(plan)
        hidden = self._input(plan, receive)
        clock.enter(Activity.COMPUTE, step_id)
        hidden = self._runner.forward(step, hidden)
        if self._links.outbox is not None:
            clock.enter(Activity.SEND, step_id)
            self._links.outbox.send(hidden)
            clock.bytes_sent += hidden.nbytes
        if self._manager.is_last:
            clock.enter(Activity.SAMPLE, step_id)
            tokens = self._runner.sample(step, hidden)
            clock.enter(Activity.SEND, step_id)
            if self._links.token_outbox is not None and tokens:
                # Before the driver hears of them, since stage 0 may be waiting.
                self._links.token_outbox.send(self._runner.as_tensor([t.token for t in tokens]))
            prompts: list[PromptLogprobs] = []
            if plan.scored:
                clock.enter(Activity.SAMPLE, step_id)
                prompts = self._runner.score(step, hidden)
                clock.enter(Activity.SEND, step_id)
            self._emit(StepResult(step_id, tokens, prompts))
            if self._manager.is_first:
                self._feed.put(tokens)
        elif self._manager.is_first:
            clock.enter(Activity.PREPARE, step_id)
            self._feed.expect(plan.sampled)
        clock.steps += 1
        clock.tokens += plan.num_tokens

    def _input(self, plan: StepPlan, receive: Receive | None) -> torch.Tensor:
        """Hidden states of the stage before, or on the first stage token ids."""
        if receive is not None:
            self._clock.enter(Activity.WAIT_INPUT, plan.step_id)
            return receive.wait()
        self._feed.begin(plan)
        ids = [token for step in plan.steps for token in step.tokens]
        pending = [step.seq_id for step in plan.steps if step.tokens[0] == PENDING]
        if pending:
            self._clock.enter(Activity.WAIT_INPUT, plan.step_id)
            latest = iter(self._feed.latest(pending))
            self._clock.enter(Activity.PREPARE, plan.step_id)
            ids = [next(latest) if token == PENDING else token for token in ids]
        return self._runner.as_tensor(ids)
