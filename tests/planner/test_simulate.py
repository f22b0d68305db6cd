"""The simulator: nobody's tokens are lost, no second is, and times are those reckoned by hand."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.modelled import DRIVER, Stage, link, pipeline

from ppinfer.errors import CapacityError
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import Arrival, arrivals, static_batch
from ppinfer.timeline.lanes import lanes
from ppinfer.timeline.tables import bubble_table, time_table
from ppinfer.trace.analysis import CAUSES, analyse
from ppinfer.trace.chrome import read_trace, write_trace
from ppinfer.trace.intervals import run_interval
from ppinfer.trace.model import WORK

stages = st.builds(
    Stage,
    compute=st.sampled_from([1e-4, 1e-3, 7e-3]),
    row=st.sampled_from([0.0, 1e-5, 3e-4]),
    prepare=st.sampled_from([0.0, 2e-4]),
    sample=st.sampled_from([0.0, 5e-4]),
    send=st.sampled_from([0.0, 1e-4]),
)
links = st.builds(
    link, st.sampled_from([1e5, 1e6, 1e9, 1e15]), st.sampled_from([0.0, 1e-4, 2e-3])
)  # a row in 10 ms, 1 ms, 1 us, and in no time


@st.composite
def pipelines(draw, cores=(math.inf, math.inf, 1.0, 2.0)):
    number = draw(st.integers(1, 5), "stages")
    block_size = draw(st.sampled_from([1, 4, 16]))
    return pipeline(
        draw(st.lists(stages, min_size=number, max_size=number)),
        draw(st.lists(links, min_size=number - 1, max_size=number - 1)),
        slots=draw(st.sampled_from([None, 1, 2, 7])),
        size=draw(st.integers(1, 5)),
        chunk=draw(st.sampled_from([1, 5, 16, 512])),
        num_blocks=-(-60 // block_size) + draw(st.sampled_from([0, 4, 1000])),
        block_size=block_size,
        cores=draw(st.sampled_from(cores)),
    )


requests = st.builds(
    lambda at, prompt, new, more, streamed: Arrival(at, prompt, new, new + more, streamed),
    st.sampled_from([0.0, 0.0, 1e-3, 0.04, 1.0]),
    st.integers(1, 40),
    st.integers(1, 10),
    st.sampled_from([0, 0, 9]),
    st.booleans(),
)
loads = st.lists(requests, min_size=1, max_size=12)


@given(pipelines(), loads)
@settings(deadline=None, max_examples=60)
def test_every_request_gets_its_tokens_and_every_second_is_accounted_for(model, load):
    outcome = simulate(model, load, trace=True)
    assert outcome.requests == len(load)
    assert outcome.prompt_tokens == sum(arrival.prompt for arrival in load)
    assert outcome.new_tokens == sum(arrival.new for arrival in load)
    assert simulate(model, load, trace=True) == outcome, "the same again"
    event(f"preempted: {outcome.preemptions > 0}")

    for stage in outcome.stages:
        parts = [*stage.work.values(), *stage.waits.values()]
        assert min(parts) >= -1e-9
        assert sum(parts) == pytest.approx(outcome.seconds, rel=1e-9)
        assert stage.seconds == outcome.seconds
        assert stage.steps == outcome.steps
    assert 0 < outcome.kv_mean <= outcome.kv_peak + 1e-9
    assert outcome.kv_peak <= 1
    assert outcome.first_token.mean <= outcome.whole.mean <= outcome.seconds + 1e-9
    _check_trace(outcome)


def _check_trace(outcome):
    """The counters say what the analysis of the trace does, which counts nanoseconds."""
    analysis = analyse(outcome.trace).total
    assert analysis.seconds == pytest.approx(outcome.seconds, abs=1e-8)
    assert analysis.steps == outcome.steps
    tolerance = 3e-9 * (outcome.steps + 1)
    bubbles = {(found.stage, found.cause): found.part.seconds for found in analysis.bubbles}
    for index, (stage, found) in enumerate(zip(outcome.stages, analysis.stages, strict=True)):
        assert found.steps == stage.steps
        assert found.busy_share == pytest.approx(stage.busy_share, abs=1e-6)
        assert abs(found.uncovered_share) < 1e-9, "spans cover every moment"
        for activity in WORK:
            assert found.parts[activity].seconds == pytest.approx(
                stage.work[activity], abs=tolerance
            )
        for cause in CAUSES:
            assert bubbles.get((index, cause), 0.0) == pytest.approx(
                stage.waits[cause], abs=tolerance
            ), (index, cause)
    for lane in outcome.trace.lanes:
        assert all(one.end == other.start for one, other in pairwise(lane.spans))


@given(pipelines(cores=(math.inf,)), loads)
@settings(deadline=None, max_examples=25)
def test_cores_that_suffice_are_devices_of_ones_own(model, load):
    """Both ways of passing steps through the stages say the same."""
    own, shared = simulate(model, load), simulate(replace(model, cores=99.0), load)
    assert shared.seconds == pytest.approx(own.seconds)
    assert shared.steps == own.steps
    for one, other in zip(own.stages, shared.stages, strict=True):
        assert other.work == pytest.approx(one.work)
        assert other.waits == pytest.approx(one.waits, abs=1e-9)


# ---------------------------------------------------------------- by hand


def test_one_stage_and_one_micro_batch() -> None:
    """Three steps follow each other without a pause, since each is planned ahead."""
    outcome = simulate(pipeline([Stage(10e-3, 1e-3, 1e-3, 2e-3)]), static_batch(1, 4, 3))
    driver = DRIVER.step / 2 + DRIVER.sequence / 2  # for a plan, and for a result
    first = driver + DRIVER.message
    steps = [1e-3 + 14e-3 + 2e-3, *[1e-3 + 11e-3 + 2e-3] * 2]
    assert outcome.seconds == pytest.approx(first + sum(steps) + DRIVER.message + driver)
    assert outcome.first_token.p50 == pytest.approx(first + steps[0] + DRIVER.message + driver)
    assert outcome.between_tokens.p50 == pytest.approx(14e-3)
    assert outcome.whole.p99 == outcome.seconds
    (stage,) = outcome.stages
    assert stage.work == pytest.approx({"compute": 36e-3, "sample": 6e-3, "prepare": 3e-3})
    assert stage.waits == pytest.approx(
        {
            "ramp up": first, "drain": DRIVER.message + driver, "no request": 0.0,
            "wait_plan": 0.0, "wait_input": 0.0, "send": 0.0,
        },
        abs=1e-12,
    )  # fmt: skip
    assert outcome.throughput == pytest.approx(3 / outcome.seconds)
    assert (outcome.steps, outcome.sequences_a_step) == (3, 1)


def test_two_stages_and_a_link() -> None:
    """A prompt of 4 rows, and one token after it: 1 kB a row at 1 MB/s is 1 ms a row."""
    wire = link(1e6, 5e-4)
    outcome = simulate(pipeline([Stage(10e-3), Stage(20e-3)], [wire]), static_batch(1, 4, 2))
    begin = DRIVER.step / 2 + DRIVER.sequence / 2 + DRIVER.message
    prompt = 10e-3 + 4e-3 + 5e-4 + 20e-3 + 5e-4  # the token's way back takes the latency alone
    decode = 10e-3 + 1e-3 + 5e-4 + 20e-3
    assert outcome.seconds == pytest.approx(begin + prompt + decode + begin)
    first, last = outcome.stages
    assert first.waits["wait_input"] == pytest.approx(prompt - 10e-3)
    assert last.waits["ramp up"] == pytest.approx(begin + 14.5e-3)
    assert last.waits["wait_input"] == pytest.approx(12e-3)  # token, stage 0, a row, latency
    assert first.waits["drain"] == pytest.approx(21.5e-3 + begin)


def test_what_is_prepared_before_the_input_comes_costs_nothing() -> None:
    slow = simulate(pipeline([Stage(5e-3), Stage(5e-3, prepare=4e-3)]), static_batch(1, 4, 1))
    quick = simulate(pipeline([Stage(5e-3), Stage(5e-3)]), static_batch(1, 4, 1))
    assert slow.seconds == pytest.approx(quick.seconds)


def test_a_link_that_is_too_slow_binds() -> None:
    """Hidden states queue up before it, so its time is what a round takes."""
    load = static_batch(8, 4, 40)
    model = pipeline([Stage(1e-3), Stage(1e-3)], [link(1e6)], slots=2, size=4)  # 4 ms a step
    outcome = simulate(model, load)
    assert outcome.seconds == pytest.approx(2 * 40 * 4e-3, rel=0.15)
    assert outcome.stages[1].waits["wait_input"] > 0.7 * outcome.seconds


def test_the_slowest_stage_is_busy_and_the_others_wait_for_it() -> None:
    model = pipeline([Stage(1e-3), Stage(4e-3), Stage(2e-3)], slots=6, size=1)
    outcome = simulate(model, static_batch(6, 4, 50))
    assert [round(stage.busy_share, 1) for stage in outcome.stages] == [0.2, 1.0, 0.5]
    assert outcome.seconds == pytest.approx(6 * 50 * 4e-3, rel=0.02)


def test_enough_micro_batches_fill_equal_stages() -> None:
    one, two, three = (
        simulate(pipeline([Stage(3e-3)] * 2, slots=slots, size=8 // slots), static_batch(8, 4, 60))
        for slots in (1, 2, 4)
    )
    assert [round(stage.busy_share, 1) for stage in one.stages] == [0.5, 0.5]
    assert min(stage.busy_share for stage in (*two.stages, *three.stages)) > 0.95


def test_more_bandwidth_never_makes_a_run_slower() -> None:
    cards = [Stage(1e-3, 1e-5), Stage(2e-3, 1e-5), Stage(1e-3, 3e-5)]
    for slots, chunk in ((1, 512), (3, 64), (6, 16)):
        took = [
            simulate(
                pipeline(cards, [link(bandwidth, 1e-4)] * 2, slots=slots, chunk=chunk),
                static_batch(12, 60, 20),
            ).seconds
            for bandwidth in (1e5, 3e5, 1e6, 3e6, 1e7, 1e9)
        ]
        assert took == sorted(took, reverse=True)
        assert took[0] > 2 * took[-1]


def test_one_slow_link_among_fast_ones() -> None:
    def took(*rates: float) -> float:
        model = pipeline([Stage()] * 4, [link(rate, 1e-5) for rate in rates], size=2)
        return simulate(model, static_batch(8, 8, 30)).seconds

    fast, slow = 1e9, 4e5
    one = [took(slow, fast, fast), took(fast, slow, fast), took(fast, fast, slow)]
    assert max(one) < 1.1 * min(one), "wherever it is"
    assert min(one) > 2 * took(fast, fast, fast)
    assert took(slow, slow, slow) < 1.3 * max(one), "links work at the same time"


def test_late_requests_leave_bubbles_of_their_own() -> None:
    load = [Arrival(at, 8, 5, 5) for at in (2.0, 2.5, 3.5)]
    outcome = simulate(pipeline([Stage(2e-3), Stage(2e-3)]), load)
    assert outcome.seconds == pytest.approx(1.5, abs=0.1), "from the first request on"
    for stage in outcome.stages:
        assert stage.waits["no request"] == pytest.approx(1.5, abs=0.1)
        assert stage.waits["wait_plan"] < 1e-3
    assert outcome.first_token.p99 < 0.02, "latency is counted from when each came"
    assert outcome.kv_mean < 0.1 * outcome.kv_peak


def test_a_run_that_begins_later_is_the_same_run() -> None:
    early = arrivals(6, (4, 30), (4, 9), rate=100.0)
    late = [replace(arrival, at=arrival.at + 64.0) for arrival in early]
    model = pipeline([Stage(2e-3, 1e-4), Stage(1e-3)])
    one, other = simulate(model, early), simulate(model, late)
    for name in ("seconds", "kv_mean", "kv_peak", "steps", "sequences_a_step", "throughput"):
        assert getattr(other, name) == pytest.approx(getattr(one, name)), name
    for name in ("first_token", "between_tokens", "whole"):
        for part in ("mean", "p50", "p90", "p99"):
            latencies = (getattr(getattr(outcome, name), part) for outcome in (one, other))
            assert next(latencies) == pytest.approx(next(latencies), abs=1e-9)
    for stage, same in zip(one.stages, other.stages, strict=True):
        assert same.work == pytest.approx(stage.work)
        assert same.waits == pytest.approx(stage.waits, abs=1e-9)


def test_a_driver_that_takes_too_long_leaves_stages_waiting_for_plans() -> None:
    slow = replace(DRIVER, step=10e-3)
    outcome = simulate(pipeline([Stage(1e-3)], driver=slow), static_batch(4, 4, 30))
    (stage,) = outcome.stages
    assert stage.waits["wait_plan"] > 0.8 * outcome.seconds
    assert stage.waits["no request"] == 0


def test_small_memory_preempts_and_everybody_is_served() -> None:
    """Memory is promised by how long outputs were lately, and then longer ones come."""
    load = [Arrival(0.0, 20, new, 400) for new in (*[4] * 8, *[60] * 8)]
    small, large = (
        simulate(pipeline([Stage()] * 2, size=4, num_blocks=n, block_size=4), load)
        for n in (110, 1000)
    )
    assert small.preemptions > 0
    assert large.preemptions == 0
    assert small.new_tokens == large.new_tokens == 8 * 64
    assert small.seconds > large.seconds
    assert small.kv_peak > 0.9


def test_a_request_that_never_fits_is_refused() -> None:
    with pytest.raises(CapacityError, match="needs 26 KV cache blocks of 16 tokens, but the whole"):
        simulate(pipeline([Stage()], num_blocks=20), static_batch(1, 400, 10))


def test_stages_that_share_one_core_take_turns() -> None:
    own, shared = (
        simulate(pipeline([Stage(2e-3)] * 2, cores=cores), static_batch(8, 4, 40))
        for cores in (math.inf, 1.0)
    )
    work = 2 * 2e-3 * own.steps
    assert own.seconds == pytest.approx(work / 2, rel=0.1)
    assert shared.seconds == pytest.approx(work * shared.steps / own.steps, rel=0.1)


# ---------------------------------------------------------------- traces, and torch


def test_a_trace_is_written_read_back_and_shown(tmp_path: Path) -> None:
    load = arrivals(6, (4, 30), (8, 20), rate=200.0)
    trace = simulate(pipeline([Stage(), Stage(2e-3)]), load, trace=True).trace
    path = tmp_path / "run.json"
    write_trace(trace, path)
    again = read_trace(path)
    assert again == trace
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(lanes(again, run_interval(again), 100))
    console.print(time_table(analyse(again)))
    console.print(bubble_table(analyse(again)))
    shown = console.export_text()
    assert "stage 1" in shown
    assert "ramp up" in shown


def test_it_runs_where_there_is_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from ppinfer.config import EngineConfig
from ppinfer.planner.assemble import assemble
from ppinfer.planner.cost import USUAL
from ppinfer.planner.hardware import load_catalog
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import static_batch
from support.modelled import MODEL
catalog = load_catalog()
config = EngineConfig(pp_size=2, micro_batch_size=2)
devices, links = catalog.parse_devices("a10,l4"), catalog.parse_links("pcie4", 2)
found = assemble(MODEL, devices, links, "bf16", config, context=100, efficiency=USUAL)
print(simulate(found.pipeline, static_batch(4, 64, 8), trace=True).new_tokens)
"""
    tests = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True,
        env={"PYTHONPATH": f"{tests.parent}:{tests}"},
    )  # fmt: skip
    assert found.stdout == "32\n"
