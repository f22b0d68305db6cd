"""Memory that runs out: who gives way, and that nobody's tokens change by it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.fake_pipeline import expected_output
from support.schedule_rig import Fixed, Rig, make_request

from ppinfer.messages import SampledToken, StepResult
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.memory import FIRST_GUESS, OutputLengths
from ppinfer.schedule.micro_batch import MicroBatchManager


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_every_request_gets_its_tokens_where_memory_is_short(data):
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 12), st.integers(4, 12)), min_size=3, max_size=8)
    )
    block_size = data.draw(st.sampled_from([1, 2]), "block size")
    longest = max(-(-sum(shape) // block_size) for shape in shapes)
    rig = Rig(
        slots=data.draw(st.sampled_from([1, 2, 3]), "slots"),
        stages=data.draw(st.integers(1, 3), "stages"),
        num_blocks=longest + data.draw(st.integers(0, 8), "spare blocks"),
        block_size=block_size,
        max_prefill_tokens=data.draw(st.sampled_from([5, 512]), "chunk"),
        prefix_caching=data.draw(st.booleans(), "prefix caching"),
        expected_output=data.draw(st.integers(0, 3), "expected output"),
    )
    made = [
        dataclasses.replace(
            make_request(seq_id, length, max_tokens), priority=data.draw(st.integers(0, 1))
        )
        for seq_id, (length, max_tokens) in enumerate(shapes)
    ]
    for request in made:
        rig.add(request)
    rig.run()
    assert rig.outputs == {request.seq_id: expected_output(request) for request in made}
    assert rig.manager.memory.room == rig.pool.num_blocks, "no promise is left behind"
    event("preempted" if rig.manager.num_preemptions else "all at once")


def make_tight(requests, **settings):
    rig = Rig(slots=1, block_size=1, expected_output=0, **settings)
    for request in requests:
        rig.add(request)
    return rig


def test_who_came_last_with_the_least_priority_gives_way():
    important = dataclasses.replace(make_request(2, 4, 8), priority=-1)
    rig = make_tight([make_request(0, 4, 8), make_request(1, 4, 8), important], num_blocks=24)
    order = []
    finished = []
    while rig.manager.has_unfinished:
        rig.fill()
        waiting = rig.manager.first_waiting
        if waiting is not None and waiting.seq_id not in order:
            order.append(waiting.seq_id)
        rig.tick()
        finished += [seq_id for seq_id in rig.reasons if seq_id not in finished]
    assert order == [1]
    assert finished[-1] == 1
    assert rig.manager.num_preemptions == 1


def test_one_that_gave_way_comes_back_before_those_behind_it():
    rig = make_tight([make_request(i, 4, 10) for i in range(3)], num_blocks=17)
    first_steps = []
    while rig.manager.has_unfinished:
        rig.fill()
        rig.tick()
    first_steps = [new.seq_id for plan in rig.pipeline.plans for new in plan.new]
    assert first_steps.count(0) == 1, "the first of all is never sent away"
    assert first_steps.index(1) < len(first_steps) - 1 - first_steps[::-1].index(2)
    assert list(rig.reasons) == [0, 1, 2]


def test_what_it_computed_is_found_again_while_nobody_used_the_blocks():
    """With its blocks still there, only what lies behind the last full one is computed again."""
    rig = make_tight([make_request(0, 8, 8)], num_blocks=64)
    for _ in range(6):
        rig.fill()
        rig.tick()
    (seq,) = rig.manager.running()
    computed = seq.num_computed
    assert computed > seq.prompt_len
    rig.manager._preempt(seq)
    rig.run()
    again = [plan for plan in rig.pipeline.plans if plan.new][1]
    assert again.ended == [0]
    (step,) = again.steps
    assert step.start == computed
    assert rig.outputs[0] == expected_output(make_request(0, 8, 8))


def test_stages_are_told_the_output_where_penalties_need_it():
    manager = MicroBatchManager(1, 4, BlockPool(64, 4))
    (slot,) = manager.slots
    manager.add(make_request(0, 3, 8, presence_penalty=1.0))
    seq = manager.admit(slot)
    for token in (7, 8):
        plan = manager.launch(slot, [(seq, seq.num_unplanned)])
        manager.commit(StepResult(plan.step_id, [SampledToken(0, token)]))
    ahead = manager.launch(slot, [(seq, 1)])
    manager._preempt(seq)
    assert manager.commit(StepResult(ahead.step_id, [SampledToken(0, 9)])) == []
    seq = manager.admit(slot)
    (new,) = manager.launch(slot, [(seq, seq.num_unplanned)]).new
    assert new.prompt_len == 3
    assert new.history == (*range(3), 7, 8)


def test_an_abort_while_it_waits_to_come_back():
    rig = make_tight([make_request(i, 4, 10) for i in range(2)], num_blocks=16)
    while not rig.manager.num_preemptions:
        rig.fill()
        rig.tick()
    assert rig.manager.finish(1, "abort") is not None
    rig.run()
    assert rig.outputs[0] == expected_output(make_request(0, 4, 10))


def test_a_limit_that_answers_do_not_reach_holds_no_memory():
    """Of 20 blocks a request may come to need 18, but answers have had 4 tokens lately."""
    rig = Rig(slots=1, num_blocks=20, block_size=4)
    rig.manager.memory.lengths = Fixed(4)
    for seq_id in range(4):
        rig.add(make_request(seq_id, 8, 64, stop_ids=()))
    rig.fill()
    assert rig.manager.num_running == 4
    assert rig.manager.num_waiting == 0


def test_the_guess_follows_what_outputs_have():
    lengths = OutputLengths()
    assert lengths.expected == FIRST_GUESS
    for _ in range(100):
        lengths.add(10)
    assert lengths.expected == 10
    for _ in range(10):
        lengths.add(500)
    assert lengths.expected == 500


@pytest.mark.parametrize("num_blocks", [12, 13, 30])
def test_the_longest_alone_always_ends(num_blocks):
    rig = make_tight([make_request(i, 4, 9) for i in range(5)], num_blocks=num_blocks)
    rig.run(ticks=400)
    assert rig.outputs == {i: expected_output(make_request(i, 4, 9)) for i in range(5)}
