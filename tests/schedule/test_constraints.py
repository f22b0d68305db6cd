"""Sequences whose next draw depends on their last: never ahead of results, and in nobody's way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from support.fake_pipeline import VOCABULARY, expected_output, next_allowed, next_token
from support.schedule_rig import Rig, make_request

from ppinfer.grammar import Grammar
from ppinfer.messages import PENDING, StepPlan
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams


def mask_after(tokens: Sequence[int]) -> bytes:
    """Tokens of the other parity than the last."""
    parity = (tokens[-1] + 1) % 2 if tokens else 0
    bits = sum(1 << token for token in range(parity, VOCABULARY, 2))
    return bits.to_bytes(2, "little")


class Alternating:
    """A mask comes ``lateness`` ticks after its token; ``length`` tokens are all there can be."""

    def __init__(self, lateness: int = 0, length: int = 1000) -> None:
        self.tokens: list[int] = []
        self.clock = self._due = 0
        self._lateness, self._length = lateness, length

    @property
    def mask(self) -> bytes | None:
        return mask_after(self.tokens) if self.clock >= self._due else None

    def accept(self, token: int) -> bool:
        assert self.mask is not None, "nothing is drawn without a mask"
        self.tokens.append(token)
        self._due = self.clock + self._lateness
        return len(self.tokens) == self._length


def constrained(request: Request, constraint: Alternating) -> Request:
    return dataclasses.replace(request, constraint=constraint)


def expected(request: Request) -> list[int]:
    tokens, output = list(request.prompt_token_ids), []
    while len(output) < request.params.max_tokens:
        output.append(next_allowed(next_token(tokens), mask_after(output)))
        tokens.append(output[-1])
    return output


def run(rig: Rig, constraints: Sequence[Alternating]) -> None:
    while rig.manager.has_unfinished:
        rig.fill()
        rig.tick()
        for constraint in constraints:
            constraint.clock += 1


def steps_of(plans: Sequence[StepPlan], seq_id: int) -> list:
    return [step for plan in plans for step in plan.steps if step.seq_id == seq_id]


@pytest.mark.parametrize("lateness", [0, 1, 5])
@pytest.mark.parametrize("slots", [1, 3])
def test_tokens_fit_and_the_others_run_ahead(lateness: int, slots: int) -> None:
    rig = Rig(slots=slots, max_prefill_tokens=7)
    constraints = [Alternating(lateness) for _ in range(3)]
    free = [make_request(i, 3 + 9 * i, max_tokens=12) for i in range(4)]
    held = [
        constrained(make_request(10 + i, 2 + 11 * i, max_tokens=9), constraint)
        for i, constraint in enumerate(constraints)
    ]
    for request in (*free[:2], *held, *free[2:]):
        rig.add(request)
    run(rig, constraints)
    for request in free:
        assert rig.outputs[request.seq_id] == expected_output(request)
        assert not any(step.mask for step in steps_of(rig.pipeline.plans, request.seq_id))
    for request in held:
        assert rig.outputs[request.seq_id] == expected(request)
        assert rig.reasons[request.seq_id] == "length"
        steps = steps_of(rig.pipeline.plans, request.seq_id)
        assert all(PENDING not in step.tokens for step in steps)
        assert all(bool(step.mask) == step.sample for step in steps)
    assert rig.pipeline.num_pending > 0
    assert rig.pool.num_used == 0


def test_who_waits_for_a_mask_holds_up_nobody() -> None:
    def ticks(lateness: int) -> int:
        rig, constraint = Rig(slots=1), Alternating(lateness)
        rig.add(make_request(0, 5, max_tokens=40))
        rig.add(constrained(make_request(1, 5, max_tokens=5), constraint))
        while 0 not in rig.reasons:
            rig.fill()
            rig.tick()
            constraint.clock += 1
        return constraint.clock

    assert ticks(7) == ticks(0)


@pytest.mark.parametrize("max_tokens", [4, 9])
def test_the_token_after_which_nothing_follows_is_the_last(max_tokens: int) -> None:
    """Also where it is the last that was asked for: then the text is whole."""
    rig, constraint = Rig(), Alternating(length=4)
    rig.add(constrained(make_request(0, 5, max_tokens=max_tokens), constraint))
    run(rig, [constraint])
    assert len(rig.outputs[0]) == 4
    assert rig.reasons[0] == "stop"
    assert rig.pool.num_used == 0


def test_stages_are_not_told_the_grammar() -> None:
    rig, constraint = Rig(), Alternating()
    params = SamplingParams(max_tokens=2, grammar=Grammar.json_object(), temperature=0.5, seed=1)
    rig.add(Request(0, (1, 2), params, constraint=constraint))
    run(rig, [constraint])
    (new,) = rig.pipeline.plans[0].new
    assert new.params == SamplingParams(max_tokens=2, temperature=0.5, seed=1)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("ticks", [3, 4, 5])
def test_those_of_one_slot_go_together(stages: int, ticks: int) -> None:
    """Steps of half of them each would read all weights twice as often."""
    rig, constraints = Rig(slots=1, stages=stages), [Alternating(), Alternating()]
    rig.add(constrained(make_request(0, 5, max_tokens=20), constraints[0]))
    for _ in range(ticks):  # the second comes late
        rig.fill()
        rig.tick()
    rig.add(constrained(make_request(1, 5, max_tokens=20), constraints[1]))
    run(rig, constraints)
    assert [len(rig.outputs[i]) for i in (0, 1)] == [20, 20]
    assert sum(len(plan.steps) == 2 for plan in rig.pipeline.plans) >= 15


@pytest.mark.parametrize("lateness", [0, 1, 4])
def test_one_that_starts_over_goes_on_where_it_was(lateness: int) -> None:
    """What it must follow belongs to the tokens that were committed, and outlives its memory."""
    rig = Rig(slots=2, num_blocks=14, block_size=4, expected_output=2)
    constraints = [Alternating(lateness) for _ in range(4)]
    requests = [
        constrained(make_request(i, 3 + i, max_tokens=24), constraint)
        for i, constraint in enumerate(constraints)
    ]
    for request in requests:
        rig.add(request)
    rig.add(make_request(9, 4, max_tokens=24))
    run(rig, constraints)
    assert rig.num_preempted > 1
    for request in requests:
        assert rig.outputs[request.seq_id] == expected(request)
    assert rig.pool.num_used == 0
