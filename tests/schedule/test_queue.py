"""What queue and slots keep count of equals what counting anew gives, whatever happens."""

from __future__ import annotations

import dataclasses
from itertools import accumulate

from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.schedule_rig import Rig, make_request

from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.memory import KVMemory
from ppinfer.schedule.pace import Curve
from ppinfer.schedule.queue import WaitingQueue
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import Sums
from ppinfer.schedule.step_model import StepModel

STEPS = StepModel(Curve(((1, 4.0), (9, 12.0))), Curve(((1, 1.0),)), 0.1, 0.1)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_queue_counts_right(data):
    memory = KVMemory(BlockPool(data.draw(st.integers(1, 60), "blocks"), 4), False)
    queue, waiting = WaitingQueue(memory), []
    for arrival in range(data.draw(st.integers(1, 25), "events")):
        what = data.draw(st.sampled_from(["add", "add", "pop", "remove", "length"]))
        if what == "add":
            request = make_request(arrival, data.draw(st.integers(1, 9)), 40)
            request = dataclasses.replace(request, priority=data.draw(st.integers(0, 2)))
            seq = Sequence(request, 12, arrival, list(request.prompt_token_ids))
            queue.add(seq)
            waiting = sorted([*waiting, seq], key=lambda seq: seq.rank)
        elif what == "length":
            memory.lengths.add(data.draw(st.integers(1, 40)))
        elif waiting and what == "pop":
            assert queue.pop() is waiting.pop(0)
        elif waiting:
            queue.remove(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        assert len(queue) == len(waiting)
        assert queue.first is (waiting[0] if waiting else None)
        most = data.draw(st.integers(0, 6), "most")
        wanted = accumulate(memory.wanted(seq) for seq in waiting[:most])
        assert queue.num_fitting(most) == sum(blocks <= memory.room for blocks in wanted)
        count = min(most, len(waiting))
        assert queue.num_tokens(count) == sum(seq.num_tokens for seq in waiting[:count])


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_slots_count_right(data):
    rig = Rig(
        slots=data.draw(st.integers(1, 4), "slots"),
        size=data.draw(st.integers(1, 4), "micro-batch size"),
        num_blocks=data.draw(st.sampled_from([20, 200]), "blocks"),
        max_prefill_tokens=data.draw(st.sampled_from([5, 64]), "chunk"),
        steps=data.draw(st.sampled_from([None, STEPS]), "predicted times"),
        expected_output=1,
    )
    for seq_id in range(data.draw(st.integers(1, 12), "requests")):
        prompt, new = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
        rig.add(make_request(seq_id, prompt, new, stop_ids=(3,)))
    ahead = data.draw(st.booleans(), "planned ahead")
    while rig.manager.has_unfinished:
        if ahead:
            rig.fill()
        elif not rig.manager.num_in_flight:
            rig.pipeline.submit(rig.schedule.next_plan())
        assert [slot.sums for slot in rig.manager.slots] == _counted(rig)
        rig.tick()
        assert [slot.sums for slot in rig.manager.slots] == _counted(rig)
        everybody = [seq for slot in rig.manager.slots for seq in slot.sequences]
        assert rig.manager.sums() == Sums.of(everybody)
    event("preempted" if rig.num_preempted else "all at once")


def _counted(rig):
    return [Sums.of(slot.sequences) for slot in rig.manager.slots]
