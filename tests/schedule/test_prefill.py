"""Which prompts a step computes, how much of them, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schedule_rig import Rig, make_request

from ppinfer.messages import StepCosts
from ppinfer.schedule.pace import Curve
from ppinfer.schedule.prefill import LEAST_TOKENS, seconds_for_prompts
from ppinfer.schedule.step_model import StepModel

# A step of 1 to 64 rows takes 10 ms, and 0.1 ms a row beyond; 0.2 us a token and token of context.
MODEL = StepModel(Curve(((1, 0.010), (64, 0.010), (1024, 0.106))), Curve(((1, 0.0),)), 2e-7, 2e-7)


def chunks(rig, seq_id):
    return [
        len(step.tokens)
        for plan in rig.pipeline.plans
        for step in plan.steps
        if step.seq_id == seq_id and step.start < rig.known[seq_id]
    ]


@given(
    beside=st.integers(0, 64),
    start=st.integers(0, 4000),
    most=st.integers(1, 512),
    seconds=st.floats(-0.01, 0.2),
)
@settings(deadline=None, max_examples=100)
def test_as_many_tokens_as_there_is_time_for(beside, start, most, seconds):
    count = MODEL.prefill_tokens(beside, start, most, seconds)
    assert 0 <= count <= most
    assert not count or MODEL.prefill_seconds(beside, start, count) <= seconds
    assert count == most or MODEL.prefill_seconds(beside, start, count + 1) > seconds


def test_the_model_takes_context_out_of_what_was_measured():
    """Of 10 us a layer and row, 4 are attention to 200 tokens; a prompt of n tokens has n²/2."""
    costs = StepCosts(
        threads=1,
        decode=((1, 10e-6), (4, 40e-6)),
        prefill=((100, 100 * 6e-6 + 5000 * 20e-9),),
        head=((1, 1e-3),),
        embed=((1, 0.0),),
        prepare=((1, 0.0),),
        context=200,
        decode_context=20e-9,
        prefill_context=20e-9,
    )
    model = StepModel.fit(costs, num_layers=10)
    assert model.rows.at(1) == pytest.approx(60e-6)
    assert model.rows.at(100) == pytest.approx(6e-3)
    assert model.decode_seconds(4, 800) == pytest.approx(10 * (24e-6 + 800 * 20e-9) + 4e-3)
    assert model.prefill_seconds(0, 0, 100) == pytest.approx(6e-3 + 10 * 5000 * 20e-9)
    assert model.context_weight == pytest.approx(20e-9 / 6e-6)


def test_chunks_take_equally_long_given_their_context():
    rig = Rig(slots=1, num_blocks=2048, max_prefill_tokens=256, steps=MODEL)
    rig.add(make_request(0, prompt_len=4000, max_tokens=1))
    rig.run()
    sizes = chunks(rig, 0)
    assert sizes[0] == 256
    assert sizes == sorted(sizes, reverse=True)
    starts = [sum(sizes[:i]) for i in range(len(sizes) - 1)]
    times = [MODEL.prefill_seconds(0, s, n) for s, n in zip(starts, sizes, strict=False)]
    assert max(times) < 1.05 * min(times)


def test_few_prompts_hardly_slow_down_many_streams_and_the_reverse():
    alone = seconds_for_prompts(MODEL, 512, 0, 0, None)
    many_streams = seconds_for_prompts(MODEL, 512, 16, 0, 1 / 16)
    many_prompts = seconds_for_prompts(MODEL, 512, 1, 0, 30)
    assert many_streams == pytest.approx(0.010 * (1.8 + 2 / 16))
    assert many_prompts == alone > 3 * many_streams


def test_where_nobody_reads_along_prompts_go_first():
    assert seconds_for_prompts(MODEL, 512, 16, 0, None) == MODEL.prefill_seconds(0, 0, 512)
    rig = Rig(slots=1, size=32, num_blocks=4096, prefix_caching=False, steps=MODEL)
    for seq_id in range(16):
        rig.add(make_request(seq_id, prompt_len=8, max_tokens=40))
    rig.fill()
    rig.tick()
    rig.add(make_request(16, prompt_len=400, max_tokens=1))
    rig.run()
    assert chunks(rig, 16) == [400]


def test_a_long_prompt_beside_streams_makes_steps_of_less_than_three_times_the_time():
    rig = Rig(slots=1, size=32, num_blocks=4096, max_prefill_tokens=512, steps=MODEL)
    for seq_id in range(16):
        rig.add(replace(make_request(seq_id, prompt_len=8, max_tokens=400), streamed=True))
    for _ in range(20):
        rig.fill()
        rig.tick()
    rig.add(make_request(16, prompt_len=4000, max_tokens=1))
    rig.run()
    sizes = chunks(rig, 16)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for start, count in zip(starts[:-1], sizes[:-1], strict=True):
        took = MODEL.prefill_seconds(16, start, count)
        assert took < 2.0 * 0.012 or count == LEAST_TOKENS


@pytest.mark.parametrize("steps", [None, MODEL])
def test_a_long_prompt_does_not_hold_up_short_ones(steps):
    rig = Rig(slots=1, num_blocks=2048, max_prefill_tokens=128, steps=steps)
    rig.add(make_request(0, prompt_len=2000, max_tokens=1))
    rig.fill()
    rig.tick()
    rig.add(make_request(1, prompt_len=20, max_tokens=1))
    before = len(rig.pipeline.plans)
    while 1 not in rig.reasons:
        rig.fill()
        rig.tick()
    assert len(rig.pipeline.plans) <= before + 3


@pytest.mark.parametrize("steps", [None, MODEL])
def test_a_stream_of_short_prompts_does_not_starve_a_long_one(steps):
    """Its half of the tokens is the long one's, however many short ones come."""
    rig = Rig(slots=1, size=64, num_blocks=4096, max_prefill_tokens=256, steps=steps)
    rig.add(make_request(0, prompt_len=1280, max_tokens=1))
    rig.fill()
    for seq_id in range(1, 400):
        for more in range(4):
            rig.add(make_request(4 * seq_id + more, prompt_len=40, max_tokens=1))
        rig.fill()
        rig.tick()
        if 0 in rig.reasons:
            break
    assert len(chunks(rig, 0)) <= 1280 // 128 * 1.5
    assert len(rig.reasons) > 8, "the short ones went on too"


def test_equal_prompts_go_one_after_the_other():
    rig = Rig(slots=1, max_prefill_tokens=64)
    for seq_id in range(4):
        rig.add(make_request(seq_id, prompt_len=64, max_tokens=1))
    rig.run()
    assert [chunks(rig, seq_id) for seq_id in range(4)] == [[64]] * 4
