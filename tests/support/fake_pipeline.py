"""A pipeline without tensors that refuses every plan a real one could not carry out exactly.

The KV cache holds token ids, and the next token is a function of all ids read back through the
sequence's own block table. A wrong block, a lost token or a stale prefix therefore gives another
token than ``expected_output`` does.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from ppinfer.messages import PENDING, NewSequence, SampledToken, SequenceStep, StepPlan, StepResult
from ppinfer.request import Request
from ppinfer.schedule.slot import STEPS_A_SLOT

VOCABULARY = 11


def next_token(tokens: Iterable[int]) -> int:
    return crc32(array("q", tokens).tobytes()) % VOCABULARY


def expected_output(request: Request) -> list[int]:
    """What the request must give, whoever it shares the pipeline with."""
    tokens = list(request.prompt_token_ids)
    output: list[int] = []
    while len(output) < request.params.max_tokens:
        output.append(_draw(tokens, request.stop_ids, len(output), request.params.min_tokens))
        tokens.append(output[-1])
        if output[-1] in request.stop_ids:
            break
    return output


def _draw(tokens: Sequence[int], stop_ids: Iterable[int], num_output: int, min_tokens: int) -> int:
    token = next_token(tokens)
    if num_output < min_tokens:
        while token in stop_ids:
            token += VOCABULARY
    return token


@dataclass
class _State:
    new: NewSequence
    blocks: list[int]
    length: int = 0
    latest: int = PENDING


class FakePipeline:
    """``num_stages`` stages that take a tick each: a step's result comes that many ticks later."""

    def __init__(self, num_stages: int, block_size: int) -> None:
        self.plans: list[StepPlan] = []
        self.idle_ticks = 0  # ticks in which the first stage had nothing to do
        self._block_size = block_size
        self._kv: dict[tuple[int, int], int] = {}
        self._live: dict[int, _State] = {}
        self._queue: deque[StepResult] = deque()
        self._stages: deque[StepResult | None] = deque([None] * (num_stages - 1))
        self._busy_slots: dict[int, int] = {}  # slot of each step that is not answered
        self.num_pending = 0  # tokens that were planned before they were drawn

    def submit(self, plan: StepPlan) -> None:
        assert plan.step_id == len(self.plans), "step ids have no gaps"
        busy = list(self._busy_slots.values())
        assert busy.count(plan.slot) < STEPS_A_SLOT
        assert plan.steps, "no empty steps"
        self.plans.append(plan)
        self._busy_slots[plan.step_id] = plan.slot
        for seq_id in plan.ended:
            del self._live[seq_id]
        for new in plan.new:
            assert new.seq_id not in self._live
            self._live[new.seq_id] = _State(new, [])
        assert {new.seq_id for new in plan.new} <= {step.seq_id for step in plan.steps}
        assert len({step.seq_id for step in plan.steps}) == len(plan.steps)
        for step in plan.steps:
            self._write(step)
        drawn = [self._sample(step) for step in plan.steps if step.sample]
        self._queue.append(StepResult(plan.step_id, drawn))

    def tick(self) -> StepResult | None:
        """Move every step one stage on; what leaves the last stage is returned."""
        self.idle_ticks += not self._queue
        self._stages.appendleft(self._queue.popleft() if self._queue else None)
        result = self._stages.pop()
        if result is not None:
            del self._busy_slots[result.step_id]
        return result

    def _write(self, step: SequenceStep) -> None:
        state = self._live[step.seq_id]
        state.blocks += step.new_blocks
        assert len(set(state.blocks)) == len(state.blocks)
        if state.length == 0 and step.start > 0:  # a shared prefix: full blocks, already written
            assert step.start % self._block_size == 0
            state.length = step.start
        assert step.start == state.length, "every token once, in order"
        state.length += len(step.tokens)
        assert state.length <= len(state.blocks) * self._block_size
        assert not step.sample or state.length >= state.new.prompt_len
        for position, token in enumerate(step.tokens, start=step.start):
            if token == PENDING:
                assert len(step.tokens) == 1
                self.num_pending += 1
                token = state.latest
            assert token != PENDING, "no step has drawn this token"
            block, offset = self._place(state, position)
            owners = [i for i, other in self._live.items() if block in other.blocks]
            assert owners == [step.seq_id], "a block that is written belongs to one sequence"
            self._kv[block, offset] = token

    def _sample(self, step: SequenceStep) -> SampledToken:
        state = self._live[step.seq_id]
        tokens = [self._kv[self._place(state, position)] for position in range(state.length)]
        num_output = state.length - state.new.prompt_len
        token = _draw(tokens, state.new.stop_ids, num_output, state.new.params.min_tokens)
        state.latest = token
        return SampledToken(step.seq_id, token)

    def _place(self, state: _State, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return state.blocks[block], offset
