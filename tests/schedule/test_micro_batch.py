from __future__ import annotations

import dataclasses

import pytest

from ppinfer.errors import CapacityError, StageError
from ppinfer.messages import PENDING, SampledToken, StepResult
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.slot import MicroBatchState


def make_manager(num_blocks=16, block_size=4, slots=1, size=4, prefix_caching=True):
    pool = BlockPool(num_blocks, block_size)
    return MicroBatchManager(slots, slots * size, pool, prefix_caching)


def make_request(seq_id, prompt, max_tokens=4, stop_ids=(), **params):
    prompt = tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt)
    settings = SamplingParams(max_tokens=max_tokens, **params)
    return Request(seq_id, prompt, settings, frozenset(stop_ids))


def answer(plan, token=50):
    return StepResult(
        plan.step_id, [SampledToken(step.seq_id, token) for step in plan.steps if step.sample]
    )


def launch_all(manager, slot, count=None):
    """A step with ``count`` tokens, or all there are, of each sequence of the slot."""
    work = [(seq, min(seq.num_unplanned, count or seq.num_tokens)) for seq in slot.sequences]
    return manager.launch(slot, work)


def run_to_end(manager, request, token=50):
    manager.add(request)
    (slot,) = manager.slots
    assert manager.admit(slot) is not None
    while manager.has_unfinished:
        manager.commit(answer(launch_all(manager, slot), token))


def test_a_request_goes_through_all_states():
    manager = make_manager()
    (slot,) = manager.slots
    assert slot.state is MicroBatchState.DONE
    assert not manager.has_unfinished
    manager.add(make_request(7, 6, max_tokens=2))
    assert (manager.num_waiting, manager.num_running) == (1, 0)
    assert manager.has_unfinished
    seq = manager.admit(slot)
    assert (manager.num_waiting, manager.num_running) == (0, 1)
    assert slot.state is MicroBatchState.PREFILL

    plan = manager.launch(slot, [(seq, 4)])
    assert (plan.step_id, plan.slot, plan.ended) == (0, 0, [])
    assert [new.seq_id for new in plan.new] == [7]
    (step,) = plan.steps
    assert (step.seq_id, step.start, step.tokens) == (7, 0, [0, 1, 2, 3])
    assert len(step.new_blocks) == 1
    assert not step.sample
    assert seq.in_flight
    assert slot.in_flight == 1
    assert manager.num_in_flight == 1
    assert manager.commit(StepResult(0, [])) == []
    assert not seq.in_flight
    assert slot.in_flight == 0
    assert slot.state is MicroBatchState.PREFILL

    plan = manager.launch(slot, [(seq, 2)])
    assert plan.new == []
    assert plan.steps[0].sample
    assert len(plan.steps[0].new_blocks) == 1
    (update,) = manager.commit(answer(plan, 50))
    assert (update.seq_id, update.sampled.token, update.finish_reason) == (7, 50, None)
    assert slot.state is MicroBatchState.GENERATE
    assert manager.pool.num_used == 2

    plan = manager.launch(slot, [(seq, 1)])
    (step,) = plan.steps
    assert (step.start, step.tokens, step.new_blocks, step.sample) == (6, [50], [], True)
    (update,) = manager.commit(answer(plan, 51))
    assert update.finish_reason == "length"
    assert seq.output_token_ids == [50, 51]
    assert (seq.num_output, seq.finish_reason) == (2, "length")
    assert slot.state is MicroBatchState.DONE
    assert not manager.has_unfinished
    assert manager.pool.num_used == 0


def test_the_next_plan_names_the_ended_once():
    manager = make_manager()
    (slot,) = manager.slots
    run_to_end(manager, make_request(1, 3, max_tokens=1))
    manager.add(make_request(2, 3))
    manager.admit(slot)
    plan = launch_all(manager, slot)
    assert plan.ended == [1]
    manager.commit(answer(plan))
    assert launch_all(manager, slot).ended == []


def test_what_stages_are_told_of_a_sequence():
    manager = make_manager(size=2)
    (slot,) = manager.slots
    manager.add(make_request(1, 5, stop_ids=(9, 3, 5)))
    manager.add(make_request(2, 5, frequency_penalty=0.5))
    manager.admit(slot)
    manager.admit(slot)
    plain, penalised = launch_all(manager, slot).new
    assert (plain.prompt_len, plain.stop_ids, plain.history) == (5, (3, 5, 9), ())
    assert plain.params == SamplingParams(max_tokens=4)
    assert (penalised.stop_ids, penalised.history) == ((), (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("stop_ids", "min_tokens", "max_tokens", "count", "reason"),
    [
        ((), 0, 3, 3, "length"),
        ((50,), 0, 3, 1, "stop"),
        ((50,), 0, 1, 1, "stop"),
        ((50,), 2, 3, 2, "stop"),
        ((51,), 0, 3, 3, "length"),
    ],
)
def test_how_sequences_end(stop_ids, min_tokens, max_tokens, count, reason):
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3, max_tokens, stop_ids, min_tokens=min_tokens))
    manager.admit(slot)
    reasons = []
    while manager.has_unfinished:
        (update,) = manager.commit(answer(launch_all(manager, slot), 50))
        reasons.append(update.finish_reason)
    assert reasons == [None] * (count - 1) + [reason]


def test_finish_waiting_running_and_unknown():
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3))
    manager.add(make_request(2, 3))
    seq = manager.admit(slot)
    manager.commit(answer(launch_all(manager, slot)))
    waiting = manager.finish(2, "abort")
    assert waiting.finish_reason == "abort"
    assert manager.num_waiting == 0
    assert manager.finish(1, "stop") is seq
    assert (seq.finish_reason, seq.output_token_ids, seq.slot) == ("stop", [50], None)
    assert manager.finish(1, "abort") is None
    assert seq.finish_reason == "stop"
    assert not manager.has_unfinished
    manager.add(make_request(3, 3))
    manager.admit(slot)
    assert launch_all(manager, slot).ended == [1]  # no stage has heard of 2


def test_the_result_of_an_aborted_sequence_is_dropped():
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3))
    manager.add(make_request(2, 3))
    manager.admit(slot)
    manager.admit(slot)
    plan = launch_all(manager, slot)
    manager.finish(1, "abort")
    assert manager.pool.num_used == 1
    assert [update.seq_id for update in manager.commit(answer(plan))] == [2]
    plan = launch_all(manager, slot)
    assert plan.ended == [1]
    assert [step.seq_id for step in plan.steps] == [2]


def test_an_empty_slot_is_in_flight_until_its_result_comes():
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3))
    manager.admit(slot)
    plan = launch_all(manager, slot)
    manager.finish(1, "abort")
    assert not manager.has_unfinished
    assert slot.state is MicroBatchState.DONE
    assert manager.num_in_flight == 1
    assert manager.commit(answer(plan)) == []
    assert manager.num_in_flight == 0


def test_a_sequence_moves_to_the_back_of_another_slot():
    manager = make_manager(slots=2)
    first, second = manager.slots
    for seq_id, slot in enumerate([first, first, second]):
        manager.add(make_request(seq_id, 3))
        manager.admit(slot)
    manager.move(first.sequences[0], second)
    assert [seq.seq_id for seq in first.sequences] == [1]
    assert [(seq.seq_id, seq.slot) for seq in second.sequences] == [(2, 1), (0, 1)]
    plan = launch_all(manager, second)
    manager.move(second.sequences[0], first)  # also while a step of it is in flight
    assert [(step.seq_id, step.tokens) for step in launch_all(manager, first, 1).steps] == [
        (1, [0]),
        (2, [PENDING]),
    ]
    assert [update.seq_id for update in manager.commit(answer(plan))] == [2, 0]


def test_plans_run_ahead_of_results():
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3, max_tokens=3))
    seq = manager.admit(slot)
    first, second = launch_all(manager, slot), launch_all(manager, slot)
    assert (second.steps[0].start, second.steps[0].tokens) == (3, [PENDING])
    assert (slot.in_flight, seq.num_pending, seq.num_unplanned) == (2, 2, 1)
    with pytest.raises(AssertionError):
        launch_all(manager, slot)
    manager.commit(answer(first, 50))
    third = launch_all(manager, slot)
    assert (third.steps[0].start, third.steps[0].tokens) == (4, [PENDING])
    assert seq.num_unplanned == 0  # the last token is drawn but never computed
    manager.commit(answer(second, 51))
    (update,) = manager.commit(answer(third, 52))
    assert update.finish_reason == "length"
    assert seq.output_token_ids == [50, 51, 52]


def test_a_step_past_the_end_is_dropped():
    manager = make_manager()
    (slot,) = manager.slots
    manager.add(make_request(1, 3, stop_ids=(50,)))
    manager.admit(slot)
    first, second = launch_all(manager, slot), launch_all(manager, slot)
    assert manager.commit(answer(first, 50))[0].finish_reason == "stop"
    assert manager.pool.num_used == 0
    assert manager.commit(answer(second, 7)) == []


def test_results_come_in_order_and_for_the_right_sequences():
    manager = make_manager(slots=2)
    for index, slot in enumerate(manager.slots):
        manager.add(make_request(index, 3))
        manager.admit(slot)
    with pytest.raises(StageError, match="answered step 0, but none is in flight"):
        manager.commit(StepResult(0, []))
    first, second = (launch_all(manager, slot) for slot in manager.slots)
    with pytest.raises(StageError, match="answered step 1, but 0 is due"):
        manager.commit(answer(second))
    with pytest.raises(StageError, match=r"tokens of sequences \[1\], but the plan asked for \[0"):
        manager.commit(StepResult(0, [SampledToken(1, 5)]))
    with pytest.raises(StageError, match=r"tokens of sequences \[\]"):
        manager.commit(StepResult(0, []))
    assert len(manager.commit(answer(first))) == 1  # a refused result changed nothing
    assert len(manager.commit(answer(second))) == 1


def test_a_request_that_can_never_fit_is_refused_with_numbers():
    manager = make_manager(num_blocks=4, block_size=4)
    manager.add(make_request(1, 10, max_tokens=7))  # 17 tokens, of which 16 are computed
    with pytest.raises(CapacityError, match=r"prompt of 10 .*max_tokens 8 needs 5 .* of 4.* has 4"):
        manager.add(make_request(2, 10, max_tokens=8))
    assert manager.num_waiting == 1


def test_admission_promises_the_longest_growth():
    manager = make_manager(num_blocks=5, block_size=4)
    (slot,) = manager.slots
    manager.add(make_request(1, [1, 2], max_tokens=11))  # 3 blocks at the end
    manager.add(make_request(2, [3, 4], max_tokens=8))  # 3 blocks
    assert manager.num_admissible() == 1
    manager.admit(slot)
    plan = launch_all(manager, slot)
    assert manager.pool.num_free == 4
    assert manager.num_admissible() == 0
    assert manager.admit(slot) is None
    manager.commit(answer(plan))
    manager.finish(1, "abort")
    assert manager.admit(slot).seq_id == 2


def test_a_long_first_request_is_not_overtaken():
    manager = make_manager(num_blocks=4, block_size=4)
    (slot,) = manager.slots
    manager.add(make_request(1, [1] * 4, max_tokens=5))
    manager.add(make_request(2, [2] * 12, max_tokens=5))
    manager.add(make_request(3, [3], max_tokens=1))
    assert manager.admit(slot).seq_id == 1
    assert manager.admit(slot) is None


def test_who_waits_is_admitted_by_priority_then_by_arrival():
    manager = make_manager()
    (slot,) = manager.slots
    for seq_id, priority in ((1, 5), (2, 0), (3, -2), (4, 0), (5, -2)):
        request = make_request(seq_id, 1)
        manager.add(dataclasses.replace(request, priority=priority))
    manager.finish(5, "abort")
    assert [manager.admit(slot).seq_id for _ in range(4)] == [3, 2, 4, 1]


class TestPrefixCaching:
    def test_a_prefix_is_shared_with_the_same_salt_only(self):
        manager = make_manager()
        (slot,) = manager.slots
        for seq_id, salt, known in ((1, "", 0), (2, "", 8), (3, "one", 0), (4, "one", 8)):
            request = dataclasses.replace(make_request(seq_id, 10, max_tokens=1), salt=salt)
            manager.add(request)
            assert manager.admit(slot).num_computed == known
            manager.commit(answer(launch_all(manager, slot)))

    def test_a_known_prefix_is_not_computed_again(self):
        manager = make_manager()
        (slot,) = manager.slots
        run_to_end(manager, make_request(1, 10, max_tokens=3))
        manager.add(make_request(2, [*range(9), 99, 98], max_tokens=2))
        seq = manager.admit(slot)
        assert (seq.num_computed, seq.num_planned, len(seq.blocks)) == (8, 8, 2)
        (step,) = launch_all(manager, slot).steps
        assert (step.start, step.tokens) == (8, [8, 99, 98])
        assert step.new_blocks == seq.blocks
        assert len(step.new_blocks) == 3

    def test_output_is_known_too(self):
        manager = make_manager()
        (slot,) = manager.slots
        run_to_end(manager, make_request(1, 6, max_tokens=4), token=50)
        manager.add(make_request(2, [*range(6), 50, 50, 50, 50]))
        # Of the 10 tokens 9 were computed: the last one was drawn only.
        assert manager.admit(slot).num_computed == 8

    def test_one_prompt_token_is_left_to_compute(self):
        manager = make_manager()
        (slot,) = manager.slots
        run_to_end(manager, make_request(1, 8))
        manager.add(make_request(2, 8))
        assert manager.admit(slot).num_computed == 4

    def test_a_running_sequence_shares_what_is_committed(self):
        manager = make_manager()
        (slot,) = manager.slots
        manager.add(make_request(1, 9))
        manager.add(make_request(2, 9))
        first = manager.admit(slot)
        plan = launch_all(manager, slot)
        manager.commit(answer(plan))
        second = manager.admit(slot)
        assert second.blocks == first.blocks[:2]
        manager.finish(1, "abort")
        assert manager.pool.num_used == 2
        assert manager.pool.lookup(second.block_hashes) == second.blocks

    def test_blocks_of_a_step_in_flight_are_not_known_yet(self):
        manager = make_manager()
        (slot,) = manager.slots
        manager.add(make_request(1, 9))
        manager.add(make_request(2, 9))
        manager.admit(slot)
        launch_all(manager, slot)
        assert manager.admit(slot).num_computed == 0

    def test_a_revived_block_counts_as_taken(self):
        manager = make_manager(num_blocks=4, block_size=4)
        (slot,) = manager.slots
        run_to_end(manager, make_request(1, 8, max_tokens=1))  # leaves two known, free blocks
        manager.add(make_request(2, [70] * 4, max_tokens=5))  # two of the four
        manager.add(make_request(3, 9, max_tokens=4))  # three: both known ones and a third
        manager.admit(slot)
        assert manager.pool.num_free == 4
        assert manager.num_admissible() == 0

    def test_a_block_in_use_is_shared_for_nothing(self):
        manager = make_manager(num_blocks=4, block_size=4)
        (slot,) = manager.slots
        manager.add(make_request(1, 9, max_tokens=4))  # three of the four
        manager.add(make_request(2, 9, max_tokens=4))  # two of them are the same
        manager.admit(slot)
        manager.commit(answer(launch_all(manager, slot)))
        assert manager.admit(slot) is not None

    def test_off_means_off(self):
        manager = make_manager(prefix_caching=False)
        (slot,) = manager.slots
        run_to_end(manager, make_request(1, 9))
        manager.add(make_request(2, 9))
        seq = manager.admit(slot)
        assert seq.num_computed == 0
        assert seq.block_hashes == []
