"""Predicted beside measured, with real stages."""

from __future__ import annotations

import json

import pytest
from support.checkpoints import config_alone
from support.fake_engine import run as cli

from ppinfer import PPInferEngine
from ppinfer.bench.calibration import calibrate, run
from ppinfer.bench.predictions import Prediction, compare, tables
from ppinfer.errors import ConfigError
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import arrivals, static_batch
from ppinfer.trace.model import StepFacts, Trace


def test_a_prediction_and_its_errors() -> None:
    found = Prediction(2, "bf16", "a load", 90.0, [80.0, 100.0, 120.0], [0.5, 0.4], [0.5, 0.5])
    assert found.error == pytest.approx(-0.1)
    assert found.busy_error == pytest.approx(0.1)
    (table,) = tables([found])
    assert table.rows == [
        ["a load", "100 (80.0–120)", "90.0", "-10.0%", "50% 50%", "50% 40%", "10.0"]
    ]
    assert "largest 10.0%; busy shares off by at most 10.0 points" in table.notes[0]


def steps_of(trace: Trace) -> list[StepFacts]:
    """In order, with slots numbered in the order of their coming: an engine that ran before begins
    with any of them."""
    first, slots = min(trace.steps), list(dict.fromkeys(f.slot for f in trace.steps.values()))
    assert list(trace.steps) == list(range(first, first + len(trace.steps)))
    return [facts._replace(slot=slots.index(facts.slot)) for facts in trace.steps.values()]


@pytest.mark.slow
def test_the_schedule_is_predicted_step_by_step() -> None:
    """Times depend on the machine; which steps there are does not."""
    load = static_batch(2, 40, 6)
    late = arrivals(3, (20, 40), (3, 5), rate=20.0)
    with PPInferEngine("demo", pp_size=2, max_num_seqs=2, max_model_len=128) as engine:
        model = calibrate(engine, rounds=1)
        predicted = {"static": simulate(model, load, trace=True), "late": simulate(model, late)}
        real = run(engine, load)
        found = compare(engine, {"static": load, "late": late}, predicted, 1)
    simulated = predicted["static"].trace
    assert simulated is not None
    assert steps_of(real.trace) == steps_of(simulated)
    assert [each.load for each in found] == ["static", "late"]
    assert all(each.predicted > 0 and len(each.busy) == 2 for each in found)
    assert model.stages[0].correction.decode  # type: ignore[attr-defined]


@pytest.mark.slow
def test_this_machine_is_planned_and_run(monkeypatch) -> None:
    monkeypatch.setattr("ppinfer.bench.calibration.loads", lambda engine: [static_batch(1, 8, 8)])
    result = cli(
        "plan", "demo", "--devices", "here", "--requests", "2", "--prompt", "16", "--new", "4",
        "--dtype", "bf16", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)
    assert (found["stages"], found["dtype"], len(found["measured"])) == (1, "bf16", 3)
    assert found["predicted"] > 0


@pytest.mark.slow
def test_a_model_too_small_to_be_measured(tmp_path) -> None:
    with (
        PPInferEngine(config_alone(tmp_path), load_format="dummy") as engine,
        pytest.raises(ConfigError, match="Nothing was measured to predict from"),
    ):
        calibrate(engine)
