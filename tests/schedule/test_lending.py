"""Turns that no micro-batch needs go to prompts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from support.fake_pipeline import expected_output
from support.schedule_rig import Rig, make_request


class OneBatch:
    """A single micro-batch, and so many steps that may be under way."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def micro_batches_for(self, num_sequences: int) -> int:
        return 1

    def turns_for(self, micro_batches: int) -> int:
        return self.turns

    def threads_for(self, micro_batches: int) -> int:
        return 0


def rig_of(turns: int, **settings) -> Rig:
    slots = max(turns, 1)
    return Rig(
        slots=slots, stages=4, num_blocks=4096, max_prefill_tokens=10, prefix_caching=False,
        spread=OneBatch(turns), **settings,
    )  # fmt: skip


def ticks_of(rig: Rig) -> int:
    ticks = 0
    while rig.manager.has_unfinished:
        rig.fill()
        rig.tick()
        ticks += 1
    return ticks


def test_the_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    rig = rig_of(turns=4)
    rig.add(make_request(0, prompt_len=200, max_tokens=1))
    rig.fill()
    starts = [plan.steps[0].start for plan in rig.pipeline.plans]
    assert starts == [0, 10, 20, 30, 40, 50, 60, 70]  # two steps of each turn
    assert [plan.slot for plan in rig.pipeline.plans] == [0, 1, 2, 3] * 2
    rig.run()
    assert rig.outputs[0] == expected_output(make_request(0, prompt_len=200, max_tokens=1))
    assert len(rig.pipeline.plans) == 20


def test_nothing_is_lent_where_no_more_steps_may_be_under_way() -> None:
    rig = rig_of(turns=1)
    rig.add(make_request(0, prompt_len=200, max_tokens=1))
    rig.fill()
    assert [plan.steps[0].start for plan in rig.pipeline.plans] == [0, 10]


def test_a_deep_pipeline_has_a_prompt_done_sooner() -> None:
    def ticks(turns: int) -> int:
        rig = rig_of(turns)
        rig.add(make_request(0, prompt_len=400, max_tokens=1))
        return ticks_of(rig)

    assert ticks(turns=4) < 0.6 * ticks(turns=1)


def test_waiting_prompts_share_a_lent_step_and_join_the_slots_in_use() -> None:
    rig = rig_of(turns=3, size=20)
    for seq_id in range(12):
        rig.add(make_request(seq_id, prompt_len=5, max_tokens=30))
    rig.fill()
    assert rig.sizes() == [12, 0, 0]
    first = [[step.seq_id for step in plan.steps] for plan in rig.pipeline.plans[:6]]
    assert first == [[0, 1], [2, 3], [4, 5], [0, 1, 2, 3, 6, 7], [8, 9], [10, 11]]
    rig.run()
    assert rig.outputs == {
        i: expected_output(make_request(i, prompt_len=5, max_tokens=30)) for i in range(12)
    }


def test_who_decodes_stays_in_its_own_slots_steps() -> None:
    rig = rig_of(turns=4)
    rig.add(make_request(0, prompt_len=4, max_tokens=60))
    for _ in range(6):
        rig.fill()
        rig.tick()
    rig.add(make_request(1, prompt_len=300, max_tokens=1))
    rig.run()
    decoding = [
        plan for plan in rig.pipeline.plans for s in plan.steps if s.seq_id == 0 and s.start >= 4
    ]
    assert {plan.slot for plan in decoding} == {0}
    lent = [plan for plan in rig.pipeline.plans if plan.slot > 0]
    assert len(lent) > 15
    assert all([step.seq_id for step in plan.steps] == [1] for plan in lent)


def test_a_stream_waits_no_longer_for_its_next_token_than_a_round_takes() -> None:
    """Lent steps fill bubbles: between two steps of a stream are no more than stages."""
    rig = rig_of(turns=4)
    rig.add(replace(make_request(0, prompt_len=4, max_tokens=60), streamed=True))
    for _ in range(6):
        rig.fill()
        rig.tick()
    rig.add(make_request(1, prompt_len=600, max_tokens=1))
    rig.run()
    when = [i for i, p in enumerate(rig.pipeline.plans) if any(s.seq_id == 0 for s in p.steps)]
    assert max(after - before for before, after in pairwise(when)) <= 4


def test_a_sequence_that_drew_in_a_lent_step_lets_the_round_pass() -> None:
    """Its token is on its way, and the slot would wait for it."""
    rig = rig_of(turns=4)
    for seq_id in range(3):
        rig.add(make_request(seq_id, prompt_len=25, max_tokens=8))
    rig.run()
    plans = rig.pipeline.plans
    for seq_id in range(3):
        drew = next(i for i, p in enumerate(plans) if seq_id in p.sampled)
        following = next(
            i for i, p in enumerate(plans) if i > drew and any(s.seq_id == seq_id for s in p.steps)
        )
        if plans[drew].slot > 0:
            assert following - drew >= 2


@pytest.mark.parametrize("turns", [1, 2, 3, 6])
def test_scarce_memory_is_shared_with_lent_steps(turns: int) -> None:
    rig = Rig(
        slots=turns, size=8, stages=3, num_blocks=30, block_size=4, max_prefill_tokens=7,
        spread=OneBatch(turns), expected_output=0,
    )  # fmt: skip
    made = [make_request(i, prompt_len=20 + i, max_tokens=40) for i in range(6)]
    for request in made:
        rig.add(request)
    rig.run()
    assert rig.num_preempted > 0
    assert rig.outputs == {i: expected_output(request) for i, request in enumerate(made)}
