"""Micro-batches of equal time: contexts count, not heads alone."""

from __future__ import annotations

from support.schedule_rig import Rig, make_request

from ppinfer.schedule.pace import Curve
from ppinfer.schedule.step_model import StepModel

# 100 tokens of context cost as much as a row.
MODEL = StepModel(Curve(((1, 1.0), (11, 11.0))), Curve(((1, 0.0),)), 0.0, 0.01)


def test_one_long_context_weighs_as_much_as_many_short_ones():
    rig = Rig(slots=2, size=8, steps=MODEL)
    rig.add(make_request(0, prompt_len=900, max_tokens=40))
    for seq_id in range(1, 10):
        rig.add(make_request(seq_id, prompt_len=5, max_tokens=40))
    for _ in range(20):
        rig.fill()
        rig.tick()
    by_slot = [sorted(seq.seq_id for seq in slot.sequences) for slot in rig.manager.slots]
    assert sorted(map(len, by_slot)) == [1, 9]
    assert [0] in by_slot
    rig.run()


def test_slots_are_evened_out_when_the_long_one_ends():
    rig = Rig(slots=2, size=8, steps=MODEL)
    rig.add(make_request(0, prompt_len=900, max_tokens=5))
    for seq_id in range(1, 9):
        rig.add(make_request(seq_id, prompt_len=5, max_tokens=40))
    while 0 not in rig.reasons:
        rig.fill()
        rig.tick()
    rig.fill()
    assert rig.sizes() == [4, 4]
    rig.run()


def test_nobody_moves_back_and_forth():
    """Contexts grow alike, so the slots stay as they are until somebody ends."""
    rig = Rig(slots=3, size=8, num_blocks=4096, steps=MODEL)
    for seq_id in range(11):
        rig.add(make_request(seq_id, prompt_len=5 + 60 * (seq_id % 4), max_tokens=200))
    places = set()
    for _ in range(150):
        rig.fill()
        rig.tick()
        if not rig.manager.num_waiting:
            places.add(tuple(tuple(s.seq_id for s in slot.sequences) for slot in rig.manager.slots))
    assert len(places) == 1
