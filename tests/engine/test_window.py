"""Figures of runs, from clocks that answer late."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from ppinfer.engine.report import EngineReport, StageLayout
from ppinfer.engine.window import Meter
from ppinfer.messages import StageStats

LAYOUTS = [StageLayout(0, 3, 100, 10), StageLayout(3, 5, 200, 20)]


def clock(stage: int, at: float) -> StageStats:
    """Half of the time computing, a quarter waiting for plans, the rest for input."""
    return StageStats(
        stage=stage, steps=int(at), tokens=0, wall=at, compute=at / 2, sample=0.0,
        wait_plan=at / 4, wait_input=at / 4, send=0.0, bytes_sent=7 * int(at), rss_bytes=1,
    )  # fmt: skip


@pytest.fixture
def meter() -> Meter:
    return Meter(LAYOUTS, lambda: None, lambda: [1.0, 2.0])


def ask(meter: Meter) -> Future[EngineReport]:
    future: Future[EngineReport] = Future()
    meter.ask(future)
    return future


def test_a_run_lies_between_two_readings(meter: Meter) -> None:
    meter.begin().count_tokens(3)
    meter.begin().count_tokens(2)
    meter.end()
    future = ask(meter)
    for at in (10.0, 30.0):
        assert not future.done()
        meter.take(clock(1, at))
        meter.take(clock(0, at))
    report = future.result(timeout=0)
    assert report.new_tokens == 5
    assert [stage.steps for stage in report.stages] == [20, 20]
    assert report.stages[1].busy_share == pytest.approx(0.5)
    assert report.stages[1].wait_input_share == pytest.approx(0.25)
    assert report.stages[0].bytes_sent == 140
    assert ask(meter).done()


def test_a_run_under_way_is_read_on_demand(meter: Meter) -> None:
    meter.begin()
    future = ask(meter)
    meter.end()
    for at in (0.0, 4.0, 9.0):
        for stage in (0, 1):
            meter.take(clock(stage, at))
    assert future.result(timeout=0).stages[0].steps == 4
    assert ask(meter).result(timeout=0).stages[0].steps == 9


def test_before_any_run_the_figures_are_nought(meter: Meter) -> None:
    future = ask(meter)
    for at in (5.0, 5.0):
        for stage in (0, 1):
            meter.take(clock(stage, at))
    report = future.result(timeout=0)
    assert report.new_tokens == 0
    assert report.time_to_first_token is None
    assert report.tokens_per_second == 0.0
    assert [stage.weight_bytes for stage in report.stages] == [100, 200]


def test_an_open_reading_names_who_has_not_answered(meter: Meter) -> None:
    assert meter.unanswered() is None
    meter.begin()
    meter.take(clock(0, 1.0))
    found = meter.unanswered()
    assert found is not None
    assert found[1] == 1
    meter.take(clock(1, 1.0))
    assert meter.unanswered() is None


def test_whoever_waits_is_told_of_the_end(meter: Meter) -> None:
    meter.begin()
    future = ask(meter)
    meter.fail(RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        future.result(timeout=0)


def test_clocks_are_read_anew_whether_there_is_a_run_or_not(meter: Meter) -> None:
    asked: list[Future[None]] = [Future(), Future()]
    for future in asked:
        meter.refresh(future)
    meter.take(clock(0, 1.0))
    assert (set(meter.latest), asked[0].done()) == ({0}, False)
    meter.take(clock(1, 1.0))
    assert all(future.done() for future in asked), "a reading under way is joined"
    meter.refresh(lost := Future())
    meter.take(clock(0, 2.0))
    assert [meter.latest[stage].wall for stage in (0, 1)] == [2.0, 1.0]
    meter.fail(RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        lost.result(timeout=0)
