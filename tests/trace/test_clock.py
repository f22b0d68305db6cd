"""Clocks: the parts are the whole, and a recording is the same without gaps."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from ppinfer.stage.clock import StageClock
from ppinfer.trace import clock as clocks
from ppinfer.trace.clock import Activity, Clock, Recording


def work(clock: Clock, steps: int) -> None:
    for step in range(steps):
        clock.enter(Activity.WAIT_PLAN)
        clock.enter(Activity.PREPARE, step)
        clock.enter(Activity.COMPUTE, step)
        time.sleep(0.001)
        clock.enter(Activity.SEND, step)


def test_parts_sum_to_the_wall() -> None:
    before = time.perf_counter()
    clock = Clock(Activity.WAIT_PLAN)
    inner = time.perf_counter()
    work(clock, 20)
    outer = time.perf_counter()
    parts = clock.seconds()
    assert outer - inner <= sum(parts) <= time.perf_counter() - before
    assert parts[Activity.COMPUTE] >= 0.02
    assert parts[Activity.SAMPLE] == 0.0


def test_spans_have_no_gaps_and_agree_with_the_counters() -> None:
    clock = Clock(Activity.WAIT_PLAN)
    work(clock, 3)
    clock.enter(Activity.WAIT_INPUT)
    moments = [time.perf_counter_ns()]
    clock.start_recording()
    before = clock.seconds()
    moments.append(time.perf_counter_ns())
    work(clock, 10)
    clock.enter(Activity.WAIT_INPUT)
    moments.append(time.perf_counter_ns())
    after = clock.seconds()
    found = clock.stop_recording()
    moments.append(time.perf_counter_ns())
    spans = found.spans()
    assert moments[0] <= found.start == spans[0][2] <= moments[1]
    assert moments[2] <= spans[-1][3] <= moments[3]
    assert all(one[3] == other[2] for one, other in pairwise(spans))
    for activity in set(Activity) - {Activity.WAIT_INPUT}:  # only that went on around the counters
        recorded = sum(end - start for kind, _, start, end in spans if kind == activity)
        assert recorded / 1e9 == pytest.approx(after[activity] - before[activity], abs=1e-8)
    computed = [step for kind, step, _, _ in spans if kind == Activity.COMPUTE]
    assert computed == list(range(10))
    assert {step for kind, step, _, _ in spans if kind == Activity.WAIT_PLAN} == {-1}


def test_reading_a_clock_divides_no_span() -> None:
    clock = Clock(Activity.WAIT_PLAN)
    clock.enter(Activity.COMPUTE, 7)
    clock.start_recording()
    for _ in range(5):
        clock.seconds()
    clock.enter(Activity.SEND, 7)
    clock.enter(Activity.WAIT_PLAN)
    kinds = [(kind, step) for kind, step, _, _ in clock.stop_recording().spans()]
    assert kinds[:2] == [(Activity.COMPUTE, 7), (Activity.SEND, 7)]


def test_a_span_may_learn_its_step_later() -> None:
    clock = Clock(Activity.WAIT_PLAN)
    clock.start_recording()
    clock.enter(Activity.PREPARE)
    clock.belongs_to(3)
    clock.enter(Activity.COMPUTE, 3)
    spans = clock.stop_recording().spans()
    assert [(kind, step) for kind, step, _, _ in spans][1] == (Activity.PREPARE, 3)


def test_a_recording_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "MOST_SPANS", 10)
    clock = Clock(Activity.WAIT_PLAN)
    clock.start_recording()
    work(clock, 5)
    found = clock.stop_recording()
    assert len(found.packed) == 10 * 16
    assert found.dropped == 20 + 1 - 10
    assert len(found.spans()) <= 10
    assert (clock.stop_recording().packed, clock.stop_recording().dropped) == (b"", 0)


def test_a_recording_taken_in_parts_has_no_gaps() -> None:
    clock = Clock(Activity.WAIT_PLAN)
    parts = [clock.take_recording(True)]
    for _ in range(3):
        work(clock, 2)
        parts.append(clock.take_recording(True))
    work(clock, 1)
    parts.append(clock.take_recording(False))
    assert parts[0].packed == b""
    spans = [span for part in parts for span in part.spans()]
    assert all(one[3] == other[2] for one, other in pairwise(spans))
    assert [step for kind, step, *_ in spans if kind == Activity.COMPUTE] == [0, 1, 0, 1, 0, 1, 0]
    assert clock.take_recording(False).packed == b""


def test_a_stage_answers_with_what_it_recorded() -> None:
    clock = StageClock()
    begun = clock.trace(True, 3)
    assert (begun.stage, begun.spans) == (3, b"")
    work(clock, 2)
    ended = clock.trace(False, 3)
    spans = Recording(ended.start, ended.spans, ended.dropped).spans()
    assert begun.now >= ended.start
    assert ended.now >= spans[-1][3]
    stats = clock.stats(3, 0)
    parts = (stats.compute, stats.sample, stats.prepare, stats.wait_plan, stats.wait_input)
    assert sum(parts) + stats.send == pytest.approx(stats.wall)
