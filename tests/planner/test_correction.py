"""Measured tables, and what makes them agree with real steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppinfer.config import EngineConfig
from ppinfer.messages import StepCosts
from ppinfer.planner.correction import NONE, Comparison, Correction, at
from ppinfer.planner.hardware import Link
from ppinfer.planner.measured import MeasuredCost
from ppinfer.planner.pipeline import DriverCost, PipelineModel
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import static_batch
from ppinfer.planner.work import StepWork
from ppinfer.schedule.tuning import untuned

COSTS = StepCosts(
    threads=1,
    decode=((1, 1e-3), (8, 2e-3)),
    prefill=((128, 16e-3), (512, 64e-3)),
    head=((1, 1e-3), (8, 3e-3)),
    embed=((1, 1e-5), (512, 1e-4)),
    prepare=((1, 2e-5), (8, 4e-5)),
    context=100,
    decode_context=1e-6,
    prefill_context=1e-8,
)
ALONE = StepCosts(
    threads=2,
    decode=((1, 0.6e-3), (8, 1.2e-3)),
    prefill=((128, 8e-3), (512, 32e-3)),
    head=((1, 0.6e-3), (8, 1.8e-3)),
    embed=((1, 1e-5), (512, 1e-4)),
    prepare=((1, 2e-5), (8, 4e-5)),
)
REAL = Correction(
    decode=((1, 1.5), (8, 1.2)), prefill=1.3, sample=((1, 1.1), (8, 1.4)),
    prepare=2e-4, send=3e-4, hop=5e-4, driver=4e-4,
)  # fmt: skip


def pipeline(correction: Correction) -> PipelineModel:
    costs = [MeasuredCost(layers, 8, COSTS, None, correction) for layers in ((0, 4), (4, 8))]
    link = Link(name="", bandwidth=1e12, latency=correction.hop, source="")
    return PipelineModel(
        stages=tuple(costs),
        links=(link,),
        back=link,
        row_bytes=1024,
        num_blocks=1000,
        tuning=untuned(EngineConfig(pp_size=2, micro_batch_size=4)),
        max_sequences=8,
        driver=DriverCost(step=correction.driver, sequence=0.0),
    )


def test_a_step_by_hand() -> None:
    cost = MeasuredCost((0, 4), 4, COSTS)
    found = cost.step(StepWork.decode(8, 300), 1)
    layer = (2e-3 - 8 * 100 * 1e-6) + 8 * 300 * 1e-6
    assert found.compute == pytest.approx(4 * layer + 1e-5 + (1e-4 - 1e-5) * 7 / 511)
    assert found.sample == pytest.approx(3e-3)
    assert found.prepare == pytest.approx(4e-5 + NONE.prepare)


def test_context_costs_prompts_too() -> None:
    cost = MeasuredCost((1, 2), 4, COSTS)
    near, far = (cost.step(StepWork.prefill(1, 128, start), 1).compute for start in (0, 1000))
    assert far - near == pytest.approx(1e-8 * 128 * 1000)


def test_the_plan_says_which_table() -> None:
    cost = MeasuredCost((1, 2), 4, COSTS, ALONE)
    one, two, unsaid = (cost.step(StepWork.decode(8, 100), n).compute for n in (1, 2, 0))
    assert two == pytest.approx(1.2e-3)
    assert one == unsaid > two


def test_nothing_is_drawn_before_the_last_stage_or_of_half_a_prompt() -> None:
    assert MeasuredCost((0, 2), 4, COSTS).step(StepWork.decode(8, 100), 1).sample == 0
    assert MeasuredCost((2, 4), 4, COSTS).step(StepWork.prefill(1, 64), 1).sample == 0


def test_factors_between_rows() -> None:
    factors = ((2, 1.0), (4, 2.0))
    assert [at(factors, rows) for rows in (1, 2, 3, 4, 9)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert at((), 5) == 1.0


def test_a_correction_is_found_again() -> None:
    """What made a run differ from its prediction is what a comparison of the two finds."""
    found = Comparison()
    for size in (1, 8):
        for prompt in (20, 300):
            load = static_batch(size, prompt, 24)
            real, plain = (simulate(pipeline(c), load, trace=True).trace for c in (REAL, NONE))
            assert real is not None
            assert plain is not None
            found.add(real, plain)
    correction = found.correction()
    assert dict(correction.decode)[1] == pytest.approx(1.5, rel=1e-3)
    assert dict(correction.decode)[4] == pytest.approx(at(REAL.decode, 4), rel=1e-3)
    assert dict(correction.sample)[4] == pytest.approx(at(REAL.sample, 4), rel=1e-3)
    assert correction.prefill == pytest.approx(1.3, rel=1e-3)
    assert correction.send == pytest.approx(REAL.send, rel=1e-3)
    assert correction.hop == pytest.approx(REAL.hop, rel=0.05)
    assert correction.driver == pytest.approx(REAL.driver, rel=0.05)


def test_a_disturbed_step_is_left_out() -> None:
    load = static_batch(1, 20, 40)
    real, plain = (simulate(pipeline(NONE), load, trace=True).trace for _ in range(2))
    assert real is not None
    assert plain is not None
    lane = real.stages[0]
    middle = next(
        i for i, span in enumerate(lane.spans) if span.step == 12 and span.activity == "compute"
    )
    lane.spans[middle] = lane.spans[middle]._replace(end=lane.spans[middle].end + 10**9)
    found = Comparison()
    found.add(real, plain)
    assert dict(found.correction().decode)[1] == pytest.approx(1.0, rel=1e-3)


def test_runs_that_do_not_match_say_nothing() -> None:
    one = simulate(pipeline(NONE), static_batch(1, 20, 4), trace=True).trace
    other = simulate(pipeline(NONE), static_batch(8, 300, 4), trace=True).trace
    assert one is not None
    assert other is not None
    found = Comparison()
    found.add(one, other)
    assert found.correction().decode == ()
    assert replace(found.correction(), driver=0.0) == replace(NONE, driver=0.0, **overheads(found))


def overheads(found: Comparison) -> dict[str, float]:
    correction = found.correction()
    return {name: getattr(correction, name) for name in ("prepare", "send", "hop")}
