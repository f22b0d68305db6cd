"""Bubbles of a pipeline whose every moment is known."""

from __future__ import annotations

import pytest
from support.traces import MS, two_stages

from ppinfer.trace.analysis import Section, analyse
from ppinfer.trace.intervals import Union, clip
from ppinfer.trace.model import Lane, Span, Trace


def bubbles(section: Section) -> dict[tuple[int, str], tuple[int, float]]:
    """(stage, cause) to how many, and milliseconds."""
    return {
        (b.stage, b.cause): (b.part.count, round(b.part.seconds * 1e3, 6)) for b in section.bubbles
    }


def test_the_whole_run() -> None:
    total = analyse(two_stages(decodes=20, prefills=2)).total
    assert total.seconds == pytest.approx(0.230)  # 1 + 22 * 10 + 8 + the last commit's 1
    assert (total.steps, total.tokens, total.new_tokens) == (22, 2 * 30 + 20 * 3, 60)
    assert bubbles(total) == {
        (0, "ramp up"): (1, 1.0),
        (0, "drain"): (1, 8.0),
        (0, "send"): (22, 22.0),
        (1, "ramp up"): (2, 11.0),
        (1, "wait_plan"): (21, 21.0),
        (1, "wait_input"): (21, 21.0),
        (1, "send"): (22, 22.0),
    }
    first, last = total.stages
    assert first.parts["compute"].share == pytest.approx(22 * 8 / 230)
    assert first.busy_share + first.wait_share + first.uncovered_share == pytest.approx(1)
    assert first.uncovered_share == pytest.approx(1 / 230)  # the last commit
    assert (first.decode_step, last.decode_step) == pytest.approx((0.008, 0.007))
    assert (first.prefill_step, last.prefill_step) == pytest.approx((0.008, 0.007))


def test_what_is_lost_is_when_no_stage_works() -> None:
    """Each step's last millisecond, before the first and after the last of them."""
    found = analyse(two_stages(decodes=20, prefills=2))
    assert found.steady is not None
    assert found.total.idle_share == pytest.approx((1 + 22 + 2) / 230)
    assert found.steady.idle_share == pytest.approx(17 / 179)


def test_the_steady_decode_has_no_ends() -> None:
    steady = analyse(two_stages(decodes=20, prefills=2)).steady
    assert steady is not None
    # From stage 1's first decode step, 2, to stage 0's end of slot A's last, 20.
    assert steady.start == pytest.approx(0.031)
    assert steady.end == pytest.approx(0.001 + 20 * 0.010 + 0.009)
    assert {(b.stage, b.cause) for b in steady.bubbles} == {
        (0, "send"), (1, "wait_plan"), (1, "wait_input"), (1, "send"),
    }  # fmt: skip
    first, last = steady.stages
    assert first.uncovered_share == pytest.approx(0)
    assert last.wait_share == pytest.approx(0.3, abs=0.01)
    assert first.prefill_step is None
    part = last.parts["wait_input"]
    assert (part.p50, part.p99, part.longest) == pytest.approx((0.001, 0.001, 0.001))


def test_waits_beside_the_drivers_work() -> None:
    """The driver plans while stage 1 waits for that plan, and at no other time."""
    total = analyse(two_stages()).total
    by_cause = {(b.stage, b.cause): b for b in total.bubbles}
    wait = by_cause[1, "wait_plan"]
    assert wait.driver_seconds == pytest.approx(wait.part.seconds, rel=0.1)
    assert by_cause[1, "wait_input"].driver_seconds == 0
    assert total.driver_seconds_per_step == pytest.approx(0.002, rel=0.05)


def test_waiting_without_a_request_is_a_cause_of_its_own() -> None:
    """Two steps, and 80 ms between them in which nothing was asked for."""
    stage = Lane("stage 0", [
        Span("compute", 0, 1 * MS, 10 * MS),
        Span("wait_plan", -1, 10 * MS, 90 * MS),
        Span("compute", 1, 90 * MS, 95 * MS),
    ])  # fmt: skip
    driver = Lane("driver", [
        Span("plan", 0, 0, 1 * MS), Span("commit", 0, 11 * MS, 12 * MS),
        Span("wait", -1, 12 * MS, 89 * MS),
        Span("plan", 1, 89 * MS, 90 * MS), Span("commit", 1, 96 * MS, 97 * MS),
    ])  # fmt: skip
    found = analyse(Trace([stage], driver))
    assert bubbles(found.total) == {(0, "no request"): (1, 80.0)}
    assert found.steady is None


def test_a_window() -> None:
    trace = two_stages()
    found = analyse(trace, (0.0505, 0.0605)).total
    assert found.seconds == pytest.approx(0.010)
    assert found.stages[0].busy_share == pytest.approx(0.9)
    assert found.steps == 1
    assert analyse(trace, (5.0, 9.0)).total.steps == 0
    assert analyse(trace, (0.05, 0.08)).steady is None


def test_steps_of_slots_that_end_early_bound_the_steady_part() -> None:
    trace = two_stages(decodes=40, prefills=0)
    for step in range(21, 40, 2):  # slot B has nothing more after step 19
        trace.steps[step] = trace.steps[step]._replace(slot=0)
    steady = analyse(trace).steady
    assert steady is not None
    assert steady.end == pytest.approx(0.001 + 19 * 0.010 + 0.009)


def test_a_recording_that_was_full_ends_the_run() -> None:
    trace = two_stages()
    lane = trace.stages[1]
    lane.spans, lane.dropped = lane.spans[:20], 100
    assert analyse(trace).total.end == pytest.approx(lane.spans[-1].end / 1e9)


def test_a_trace_of_nothing() -> None:
    found = analyse(Trace([Lane("stage 0")], Lane("driver")))
    assert found.total.stages[0].busy_share == 0
    assert found.steady is None
    assert analyse(Trace([], Lane("driver"))).total.stages == []


def test_unions_and_clips() -> None:
    union = Union([(10, 20), (15, 30), (40, 50), (30, 31)])
    assert union.overlap(0, 100) == 31
    assert union.overlap(12, 45) == 24
    assert union.overlap(32, 39) == 0
    assert Union([]).overlap(0, 5) == 0
    spans = [Span("a", 0, 0, 10), Span("b", 0, 10, 20), Span("c", 0, 25, 30)]
    assert clip(spans, 5, 12) == [Span("a", 0, 5, 10), Span("b", 0, 10, 12)]
    assert clip(spans, 20, 25) == []
