from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.fake_pipeline import VOCABULARY, expected_output, expected_scores
from support.schedule_rig import Rig, make_request

from ppinfer.messages import PENDING, SampledToken, StepPlan, StepResult
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.pace import Curve
from ppinfer.schedule.step_model import StepModel

# A row costs what 10 tokens of context cost, and as much again in a prompt.
STEPS = StepModel(Curve(((1, 4.0), (9, 12.0))), Curve(((1, 1.0),)), 0.1, 0.1)

# Few tokens, so that prompts begin alike and stop ids are drawn often.
requests = st.builds(
    lambda prompt, max_tokens, min_tokens, stop_ids, penalty, scored: (
        tuple(prompt),
        SamplingParams(
            max_tokens=max_tokens - scored,  # 0 among them
            prompt_logprobs=0 if scored else None,
            min_tokens=min(min_tokens, max_tokens - scored),
            presence_penalty=penalty,
        ),
        stop_ids,
    ),
    st.one_of(
        st.lists(st.integers(0, 1), min_size=1, max_size=6),
        st.integers(1, 40).map(lambda length: [0] * length),
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40),
    ),
    st.integers(1, 12),
    st.integers(0, 6),
    st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_every_request_gets_exactly_its_tokens_in_any_mix(data):
    block_size = data.draw(st.sampled_from([1, 2, 4, 16]), "block size")
    mix = data.draw(st.lists(requests, min_size=1, max_size=14), "requests")
    longest = max(len(prompt) + params.max_tokens for prompt, params, _ in mix)
    least_blocks = -(-longest // block_size)
    rig = Rig(
        slots=data.draw(st.sampled_from([1, 2, 3, 7]), "slots"),
        size=data.draw(st.integers(1, 5), "micro-batch size"),
        stages=data.draw(st.integers(1, 4), "stages"),
        num_blocks=least_blocks + data.draw(st.sampled_from([0, 3, 30, 300]), "spare blocks"),
        block_size=block_size,
        max_prefill_tokens=data.draw(st.sampled_from([1, 3, 7, 16, 512]), "chunk"),
        prefix_caching=data.draw(st.booleans(), "prefix caching"),
        steps=data.draw(st.sampled_from([None, STEPS]), "predicted times"),
        expected_output=data.draw(st.sampled_from([None, 0, 1, 5]), "expected output"),
    )
    most = data.draw(st.integers(0, 6), "sequences in one micro-batch")
    turns = data.draw(st.integers(0, 8), "steps under way")
    rig.spread = rig.schedule._spread = ByNumber(len(rig.manager.slots), most, turns)
    arrivals = sorted(data.draw(st.integers(0, 30), "arrival") for _ in mix)
    aborts = {
        seq_id: data.draw(st.integers(0, 60), "abort")
        for seq_id in data.draw(st.frozensets(st.integers(0, len(mix) - 1), max_size=3), "aborted")
    }
    made = {
        seq_id: Request(seq_id, prompt, params, stop_ids)
        for seq_id, (prompt, params, stop_ids) in enumerate(mix)
    }
    for now in range(61):
        for seq_id, request in made.items():
            if arrivals[seq_id] == now:
                rig.add(request)
        for seq_id, when in aborts.items():
            if when == now and rig.manager.finish(seq_id, "abort"):
                rig.reasons[seq_id] = "abort"
        rig.fill()
        rig.tick()
    rig.run()

    for seq_id, request in made.items():
        expected = expected_output(request)
        if rig.reasons[seq_id] == "abort":
            event("aborted")
            assert rig.outputs[seq_id] == expected[: len(rig.outputs[seq_id])]
        else:
            event(rig.reasons[seq_id])
            assert rig.outputs[seq_id] == expected
            stopped = bool(expected) and expected[-1] in request.stop_ids
            assert rig.reasons[seq_id] == ("stop" if stopped else "length")
            if request.params.prompt_logprobs is not None:
                assert rig.scores.pop(seq_id) == expected_scores(request)
    assert all(rig.reasons[seq_id] == "abort" for seq_id in rig.scores)
    admitted = dict.fromkeys(new.seq_id for plan in rig.pipeline.plans for new in plan.new)
    assert list(admitted) == sorted(admitted), "first come, first served"
    event("preempted" if rig.num_preempted else "all at once")


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=100)
def test_a_static_batch_is_balanced_to_within_one(count, slots, size, data):
    rig = Rig(slots=slots, size=size, max_prefill_tokens=10_000)
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count))
    for seq_id, length in enumerate(lengths):
        rig.add(make_request(seq_id, prompt_len=length))
    rig.fill()
    sizes = rig.sizes()
    assert sum(sizes) == min(count, slots * size)
    assert max(sizes) - min(sizes) <= 1
    rig.run()


def test_eight_requests_over_two_slots_are_four_and_four():
    rig = Rig(slots=2, size=8)
    for seq_id in range(8):
        rig.add(make_request(seq_id))
    first, second = rig.schedule.next_plan(), rig.schedule.next_plan()
    assert [step.seq_id for step in first.steps] == [0, 1, 2, 3]
    assert [step.seq_id for step in second.steps] == [4, 5, 6, 7]
    assert (first.slot, second.slot) == (0, 1)


def test_a_slot_has_one_step_on_the_pipeline_and_one_behind_it():
    rig = Rig(slots=1, size=8)
    for seq_id in range(2):
        rig.add(make_request(seq_id, prompt_len=5))
    first, ahead = rig.schedule.next_plan(), rig.schedule.next_plan()
    assert rig.schedule.next_plan() is None
    assert [(step.start, len(step.tokens), step.sample) for step in first.steps] == [
        (0, 5, True)
    ] * 2
    assert [(step.start, step.tokens, step.sample) for step in ahead.steps] == [
        (5, [PENDING], True)
    ] * 2


def test_no_step_is_planned_past_the_last_token():
    rig = Rig(slots=1, size=1)
    rig.add(make_request(0, max_tokens=3))
    rig.run()
    assert len(rig.pipeline.plans) == 3
    assert rig.pipeline.num_pending == 2


def test_what_was_computed_past_a_stop_token_is_dropped():
    plain = make_request(0, max_tokens=9)
    stop = expected_output(plain)[2]
    rig = Rig(slots=1, size=1)
    rig.add(make_request(0, max_tokens=9, stop_ids=(stop,)))
    rig.run()
    assert rig.outputs[0] == expected_output(plain)[: rig.outputs[0].index(stop) + 1]
    assert len(rig.pipeline.plans) == len(rig.outputs[0]) + 1


class ByNumber:
    """One micro-batch for up to ``most`` sequences, else as many as there are slots."""

    def __init__(self, slots, most, turns=0):
        self.slots, self.most, self.turns = slots, most, turns

    def micro_batches_for(self, num_sequences):
        return 1 if num_sequences <= self.most else self.slots

    def turns_for(self, micro_batches):
        return self.turns

    def threads_for(self, micro_batches):
        return 8 // micro_batches


def test_few_sequences_meet_in_one_micro_batch_on_all_cores():
    rig = Rig(slots=2, size=4, spread=ByNumber(2, most=3))
    for seq_id in range(6):
        rig.add(make_request(seq_id, max_tokens=4 if seq_id % 2 else 12))
    rig.run()
    plans = rig.pipeline.plans
    assert {plan.slot for plan in plans[:4]} == {0, 1}
    assert {plan.threads for plan in plans[:4]} == {4}
    assert {(plan.slot, plan.threads) for plan in plans[-7:]} == {(0, 8)}
    assert len(plans[-5].steps) == 3
    assert rig.outputs == {
        i: expected_output(make_request(i, max_tokens=4 if i % 2 else 12)) for i in range(6)
    }


def test_one_request_needs_one_slot():
    rig = Rig(slots=7, size=1)
    rig.add(make_request(0))
    rig.run()
    assert {plan.slot for plan in rig.pipeline.plans} == {0}
    assert len(rig.pipeline.plans) == 4


def test_nothing_to_do():
    assert Rig().schedule.next_plan() is None


def test_slots_take_turns():
    rig = Rig(slots=3, size=2, stages=3)
    for seq_id in range(6):
        rig.add(make_request(seq_id, max_tokens=5))
    rig.run()
    assert [plan.slot for plan in rig.pipeline.plans] == [0, 1, 2] * 5


def test_a_driver_that_keeps_one_step_in_flight_serves_all_slots():
    rig = Rig(slots=3, size=1, stages=1)
    for seq_id in range(3):
        rig.add(make_request(seq_id, max_tokens=3))
    while rig.manager.has_unfinished:
        rig.pipeline.submit(rig.schedule.next_plan())
        rig.tick()
    assert [plan.slot for plan in rig.pipeline.plans] == [0, 1, 2] * 3


def test_prompts_share_the_budget_and_long_ones_go_in_chunks():
    rig = Rig(slots=1, size=4, max_prefill_tokens=10, stages=1)
    for seq_id, length in enumerate([4, 25, 3]):
        rig.add(make_request(seq_id, prompt_len=length, max_tokens=9))
    rig.run()
    chunks = [
        [(step.seq_id, len(step.tokens), step.sample) for step in plan.steps]
        for plan in rig.pipeline.plans[:5]
    ]
    assert chunks == [
        [(0, 4, True), (1, 6, False)],
        [(0, 1, True), (1, 10, False)],  # a decoding sequence never waits for a prompt
        [(0, 1, True), (1, 9, True), (2, 1, False)],
        [(0, 1, True), (1, 1, True), (2, 2, True)],
        [(0, 1, True), (1, 1, True), (2, 1, True)],
    ]


def test_a_prompt_without_budget_waits_for_its_slot():
    rig = Rig(slots=2, size=2, max_prefill_tokens=4)
    for seq_id in range(2):
        rig.add(make_request(seq_id, prompt_len=20))
    rig.fill()
    for _ in range(3):
        rig.tick()
    first, second = rig.manager.slots
    rig.manager.move(second.sequences[0], first)  # as if others had been given away before it
    for seq_id in range(2, 4):
        rig.add(make_request(seq_id, prompt_len=2))
    rig.fill()
    together = [[step.seq_id for step in plan.steps] for plan in rig.pipeline.plans[4:]]
    assert together == [[0], [2, 3]]
    rig.run()
    for seq_id, length in enumerate([20, 20, 2, 2]):
        assert rig.outputs[seq_id] == expected_output(make_request(seq_id, length))


def test_nobody_is_admitted_to_get_no_tokens():
    rig = Rig(slots=1, size=4, max_prefill_tokens=8)
    for seq_id in range(3):
        rig.add(make_request(seq_id, prompt_len=8))
    rig.schedule.next_plan()
    assert (rig.manager.num_running, rig.manager.num_waiting) == (1, 2)


def test_the_pipeline_does_not_drain_while_requests_wait():
    rig = Rig(slots=4, size=2, stages=4, max_prefill_tokens=64)
    for seq_id in range(60):
        rig.add(make_request(seq_id, prompt_len=1 + seq_id % 9, max_tokens=1 + seq_id * 7 % 11))
    while rig.manager.num_waiting:
        rig.fill()
        rig.tick()
    assert rig.pipeline.idle_ticks == 0
    rig.run()


def test_slots_stay_equal_to_the_end():
    rig = Rig(slots=2, size=8)
    for seq_id in range(8):  # the first slot's sequences are the short ones
        rig.add(make_request(seq_id, max_tokens=3 if seq_id < 4 else 12))
    rig.run()
    tail = [len(plan.steps) for plan in rig.pipeline.plans[-12:]]
    assert tail == [2] * 12
    slots = [plan.slot for plan in rig.pipeline.plans]
    assert all(a != b for a, b in pairwise(slots[-12:]))


def test_of_equally_small_slots_the_next_in_turn_is_given_to():
    rig = Rig(slots=3, size=3)
    for seq_id in range(9):
        rig.add(make_request(seq_id, max_tokens=20))
    rig.fill()
    for _ in range(3):  # two steps come back, the third slot's is still in flight
        rig.tick()
    for seq_id in (0, 1, 6, 7):
        rig.manager.finish(seq_id, "abort")
    assert rig.sizes() == [1, 3, 1]
    rig.fill()
    assert rig.sizes() == [1, 2, 2]
    rig.run()


def test_a_given_sequence_loses_no_turn_for_long():
    rig = Rig(slots=3, size=8, stages=3)
    for seq_id in range(24):
        rig.add(make_request(seq_id, max_tokens=1 + seq_id))
    rig.run()
    last_step: dict[int, int] = {}
    gaps: Counter[int] = Counter()
    for plan in rig.pipeline.plans:
        for step in plan.steps:
            if step.seq_id in last_step:
                gaps[plan.step_id - last_step[step.seq_id]] += 1
            last_step[step.seq_id] = plan.step_id
    assert max(gaps) <= 2 * 3
    assert gaps[3] > 0.8 * gaps.total()


def test_no_slot_waits_for_the_token_of_a_sequence_that_was_moved_to_it():
    """Its next step is a round after its last one, as for those that stay."""
    rig = Rig(slots=4, size=4, stages=4)
    for seq_id in range(16):
        rig.add(make_request(seq_id, max_tokens=3 if seq_id < 3 else 30))
    rig.run()
    last: dict[int, StepPlan] = {}
    moves = 0
    for plan in rig.pipeline.plans:
        for step in plan.steps:
            before = last.get(step.seq_id, plan)
            if step.tokens == [PENDING] and before.slot != plan.slot:
                moves += 1
                assert plan.step_id - before.step_id >= 4
            last[step.seq_id] = plan
    assert moves


def test_newcomers_fill_a_short_slot_before_anyone_moves():
    rig = Rig(slots=2, size=4)
    for seq_id in range(12):
        rig.add(make_request(seq_id, max_tokens=2 if seq_id < 4 else 9))
    slot_of: dict[int, set[int]] = {}
    while rig.manager.num_waiting:
        rig.fill()
        rig.tick()
    for plan in rig.pipeline.plans:
        for step in plan.steps:
            slot_of.setdefault(step.seq_id, set()).add(plan.slot)
    assert all(len(slots) == 1 for slots in slot_of.values())
    rig.run()


def test_slots_share_scarce_memory_evenly():
    rig = Rig(slots=2, size=8, num_blocks=12, block_size=4, prefix_caching=False)
    for seq_id in range(30):  # two blocks each: six run at a time
        rig.add(make_request(seq_id, prompt_len=4, max_tokens=2 + seq_id * 5 % 4))
    rig.fill()
    assert rig.sizes() == [3, 3]
    rig.run()


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_requests_can_come_after_all_others_ended(slots):
    rig = Rig(slots=slots, size=2, stages=3)
    for seq_id in range(3):
        rig.add(make_request(seq_id))
        rig.run()
    assert rig.outputs == {i: expected_output(make_request(i)) for i in range(3)}
    assert [plan.step_id for plan in rig.pipeline.plans] == list(range(12))
    assert [plan.ended for plan in rig.pipeline.plans if plan.new] == [[], [0], [1]]


def test_planning_costs_nothing_per_token_of_the_past():
    """Work that grew with the sequences' lengths would read their token lists; none may be read."""

    class Untouchable(list):
        def __iter__(self):
            raise AssertionError("a whole token list was walked")

        def __getitem__(self, index):
            assert not isinstance(index, slice) or index.stop - index.start <= 16
            return super().__getitem__(index)

    rig = Rig(slots=1, size=1, num_blocks=64, block_size=16)
    rig.add(make_request(0, prompt_len=100, max_tokens=50))
    rig.fill()
    (seq,) = rig.manager.slots[0].sequences
    rig.tick()
    rig.tick()
    seq.tokens = Untouchable(seq.tokens)
    for step in range(1, 50):
        rig.schedule.next_plan()
        rig.manager.commit(StepResult(step, [SampledToken(0, 1)]))
    assert not rig.manager.has_unfinished
