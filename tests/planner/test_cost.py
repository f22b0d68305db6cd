"""Times by bytes and operations, held against what is reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.modelled import CARD, MODEL

from ppinfer.errors import ConfigError
from ppinfer.messages import NewSequence, SequenceStep, StepPlan
from ppinfer.planner.cost import USUAL, Efficiency, RooflineCost
from ppinfer.planner.work import StepWork
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.step_model import StepModel

EFFICIENCY = Efficiency(
    bandwidth=0.8, kv_bandwidth=0.5, peak=0.5, layer_seconds=2e-5, step_seconds=3e-4
)
READ = 2 / (100e9 * 0.8)
"""Seconds in which a bf16 number of weights is read."""
DO = 1 / (20e12 * 0.5)
"""Seconds of an operation."""


def cost(first=0, last=8, dtype="bf16", **changes) -> RooflineCost:
    return RooflineCost(CARD, replace(MODEL, **changes), (first, last), dtype, EFFICIENCY)


def test_one_token_waits_for_memory() -> None:
    found = cost(2, 5).step(StepWork.decode(1, 1000))
    layer = 2e-5 + 4_000_000 * READ + 1000 * 2 * 128 * 2 / (100e9 * 0.5)
    assert found.compute == pytest.approx(3 * layer)
    assert (found.prepare, found.sample, found.send) == (3e-4, 0.0, 0.0)


def test_a_chunk_of_a_prompt_waits_for_arithmetic() -> None:
    """Of 2,000 tokens from position 1,000 on, each attends to those before it and itself."""
    found = cost(2, 3).step(StepWork.prefill(1, 2000, 1000))
    pairs = sum(range(1001, 3001))
    products = 2 * 4_000_000 * 2000 * DO
    assert found.compute == pytest.approx(2e-5 + products + 4 * 512 * pairs * DO)


def test_first_stage_embeds_and_last_one_draws() -> None:
    work = StepWork.decode(16, 100)
    inner, first, last = (cost(*layers).step(work) for layers in ((2, 4), (0, 2), (6, 8)))
    assert first.compute - inner.compute == pytest.approx(16 * 512 * READ)
    assert last.compute == pytest.approx(inner.compute)
    assert last.sample == pytest.approx(4_096_512 * READ + 2 * 16 * 8000 * READ)
    half_a_prompt = StepWork.prefill(1, 64)
    assert cost(6, 8).step(half_a_prompt).sample == 0


def test_bytes_count_by_dtype() -> None:
    bf16, fp32 = (cost(2, 3, dtype).step(StepWork.decode(1, 0)) for dtype in ("bf16", "fp32"))
    assert fp32.compute - 2e-5 == pytest.approx(2 * (bf16.compute - 2e-5))
    with pytest.raises(ConfigError, match="card does not compute in fp16; choose one of fp32, bf1"):
        cost(0, 8, "fp16")


def test_stages_are_equal_that_do_as_much() -> None:
    inner, other, first, last, short = (
        cost(*layers) for layers in ((2, 4), (4, 6), (0, 2), (6, 8), (4, 5))
    )
    assert inner == other
    assert hash(inner) == hash(other)
    assert len({inner, first, last, short, cost(4, 6, "fp32")}) == 5
    assert inner.step(StepWork.decode(4, 50)) == other.step(StepWork.decode(4, 50))


def test_the_table_says_what_steps_take() -> None:
    """What the tuner fits to it predicts decode steps as they are computed, and prompts nearly."""
    stage = cost(2, 3)
    model = StepModel.fit(stage.table(32, 500), 1)
    for rows, context in ((1, 500), (8, 500), (32, 500), (32, 3000), (20, 500)):
        expected = stage.step(StepWork.decode(rows, context)).compute
        found = model.decode_seconds(rows, rows * context) - model.head.at(rows)
        assert found == pytest.approx(expected, rel=0.02)
    for count in (128, 1024):
        expected = stage.step(StepWork.prefill(1, count)).compute
        assert model.prefill_seconds(0, 0, count) == pytest.approx(expected, rel=0.05)


def test_work_of_a_plan() -> None:
    """A chunk of 5 tokens from position 10 on, a whole prompt of 3, and two that decode."""
    steps = [
        SequenceStep(0, 10, [1] * 5, [], False),
        SequenceStep(1, 0, [1] * 3, [], True),
        SequenceStep(2, 99, [1], [], True),
        SequenceStep(3, 49, [-1], [], True),
    ]
    plan = StepPlan(0, 0, [], [NewSequence(1, 3, SamplingParams())], steps)
    pairs = (11 + 12 + 13 + 14 + 15) + (1 + 2 + 3)
    assert StepWork.of(plan) == StepWork(10, 4, 3, 150, 15 + 3, pairs)
    assert StepWork.prefill(2, 3) == StepWork(6, 2, 0, 0, 6, 12)
    assert StepWork.decode(2, 7) == StepWork(2, 2, 2, 14)


@pytest.mark.parametrize("name", ["bandwidth", "kv_bandwidth", "peak", "attention"])
@pytest.mark.parametrize("value", [0.0, 1.01, -1.0, float("nan")])
def test_no_part_is_above_one(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a part of what a device can do, above"):
        replace(USUAL, **{name: value})


@pytest.mark.parametrize("name", ["layer_seconds", "step_seconds", "launch_seconds"])
@pytest.mark.parametrize("value", [-1e-9, 10.0, float("nan")])
def test_times_are_times(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be seconds from 0 on"):
        replace(USUAL, **{name: value})


def test_launches_bound_steps_with_prompts_alone() -> None:
    eager = replace(EFFICIENCY, launch_seconds=1e-3)
    one_by_one = RooflineCost(CARD, MODEL, (0, 8), "bf16", eager)
    decode, short, long = (
        StepWork.decode(4, 100), StepWork.prefill(1, 8), StepWork.prefill(8, 4096)
    )  # fmt: skip
    assert one_by_one.layer_seconds(decode) == cost().layer_seconds(decode) < 1e-3
    assert one_by_one.layer_seconds(short) == 1e-3 > cost().layer_seconds(short)
    assert one_by_one.layer_seconds(long) == cost().layer_seconds(long) > 1e-3


def test_attention_over_prompts_has_a_share_of_its_own() -> None:
    slow = RooflineCost(CARD, MODEL, (0, 8), "bf16", replace(EFFICIENCY, attention=0.01))
    work = StepWork.prefill(1, 4096)
    more = 4 * MODEL.q_size * work.prompt_pairs * (1 / (20e12 * 0.01) - DO)
    assert slow.layer_seconds(work) - cost().layer_seconds(work) == pytest.approx(more)
