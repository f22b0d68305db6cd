"""Making traces: stages that answer late or by another clock, and an engine with real stages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path

import pytest
from support.checkpoints import make_model, random_ids, save_model
from support.traces import check_events

from ppinfer import PPInferEngine, PPInferError, SamplingParams, StageError, TraceError
from ppinfer.engine import collected
from ppinfer.engine.report import StageLayout
from ppinfer.engine.tracing import Tracer, Tracing
from ppinfer.messages import SequenceStep, StageTrace, StepPlan
from ppinfer.stage.clock import Activity, StageClock
from ppinfer.trace.analysis import analyse
from ppinfer.trace.chrome import read_trace
from ppinfer.trace.clock import DriverActivity, Recording
from ppinfer.trace.model import WAITS, WORK, StepFacts, Trace

LAYOUTS = [StageLayout(0, 3, 100, 10), StageLayout(3, 5, 200, 20)]


class Rig:
    """A driver's tracer and two stages that answer when they are told to; the second one's clock
    is ahead by ``ahead`` nanoseconds."""

    def __init__(self, ahead: int = 0) -> None:
        self.asked: list[bool] = []
        self.clocks = [StageClock(), StageClock()]
        self.tracer = Tracer(LAYOUTS, lambda message: self.asked.append(message.on))
        self._ahead = ahead

    def switch(self, on: bool) -> Future[Trace | None]:
        future: Future[Trace | None] = Future()
        self.tracer.switch(on, future)
        return future

    def answer(self, stage: int) -> None:
        answer = self.clocks[stage].trace(self.asked[-1], stage)
        if stage == 1:
            answer = type(answer)(
                answer.stage, answer.now + self._ahead, answer.start + self._ahead,
                _shifted(answer.spans, self._ahead), answer.dropped,
            )  # fmt: skip
        self.tracer.take(answer)

    def trace(self) -> Trace:
        begun = self.switch(True)
        for stage in (1, 0):
            assert not begun.done()
            self.answer(stage)
        assert begun.result(timeout=0) is None
        for clock in self.clocks:
            clock.enter(Activity.COMPUTE, 4)
            time.sleep(0.002)
            clock.enter(Activity.WAIT_PLAN)
        self.tracer.clock.enter(DriverActivity.PLAN)
        self.tracer.planned(PLAN)
        self.tracer.clock.enter(DriverActivity.WAIT)
        ended = self.switch(False)
        for stage in (0, 1):
            self.answer(stage)
        trace = ended.result(timeout=0)
        assert trace is not None
        return trace


PLAN = StepPlan(
    4, 1, [], [],
    [SequenceStep(1, 0, [5], [], True), SequenceStep(2, 9, [5], [], True),
     SequenceStep(3, 16, [5, 6], [], True)],
)  # fmt: skip
"""A prompt of one token, a decoding sequence, and a chunk of a prompt."""


def _shifted(spans: bytes, by: int) -> bytes:
    from array import array

    words = array("q", spans)
    for index in range(1, len(words), 2):
        words[index] += by
    return words.tobytes()


def test_lanes_lie_beside_each_other() -> None:
    trace = Rig().trace()
    assert [lane.name for lane in trace.lanes] == [
        "driver", "stage 0: layers 0-2", "stage 1: layers 3-4",
    ]  # fmt: skip
    assert trace.steps == {4: StepFacts(slot=1, tokens=4, sequences=3, decodes=1)}
    assert ("plan", 4) in {(span.activity, span.step) for span in trace.driver.spans}
    computed = [next(s for s in lane.spans if s.activity == "compute") for lane in trace.stages]
    assert computed[0].end <= computed[1].start
    assert all(span.start >= 0 for span in computed)
    assert all(lane.clock_error == 0 for lane in trace.lanes)


@pytest.mark.parametrize("ahead", [-(10**15), 10**15])
def test_another_hosts_clock_is_shifted(ahead: int) -> None:
    began = time.perf_counter_ns()
    trace = Rig(ahead).trace()
    took = time.perf_counter_ns() - began
    lane = trace.stages[1]
    (one, other) = (next(s for s in lane.spans if s.activity == "compute") for lane in trace.stages)
    assert 0 < lane.clock_error < took
    assert abs(other.start - one.end) < took
    assert trace.stages[0].clock_error == 0


def test_one_trace_at_a_time() -> None:
    rig = Rig()
    with pytest.raises(TraceError, match="one trace at a time"):
        rig.switch(False).result(timeout=0)
    begun = rig.switch(True)
    with pytest.raises(TraceError):
        rig.switch(True).result(timeout=0)
    since, stage = rig.tracer.unanswered() or (0.0, -1)
    assert (abs(time.monotonic() - since) < 60, stage) == (True, 0)
    rig.tracer.fail(StageError("gone", stage=0))
    with pytest.raises(StageError, match="gone"):
        begun.result(timeout=0)
    assert rig.tracer.unanswered() is None


def look(rig: Rig) -> Future[None]:
    future: Future[None] = Future()
    rig.tracer.look(future)
    return future


def compute(rig: Rig, step: int) -> None:
    for clock in rig.clocks:
        clock.enter(Activity.COMPUTE, step)
        clock.enter(Activity.WAIT_PLAN)


def steps_of(parts: list[StageTrace]) -> list[int]:
    found = [Recording(part.start, part.spans, part.dropped).spans() for part in parts]
    return [step for spans in found for kind, step, *_ in spans if kind == Activity.COMPUTE]


def answer(rig: Rig) -> None:
    for stage in (0, 1):
        rig.answer(stage)


def test_looks_take_what_came_since_the_last_one() -> None:
    rig = Rig()
    first = look(rig)
    assert look(rig).done() is False
    assert rig.asked == [True], "a look that is under way is joined"
    compute(rig, 1)
    answer(rig)
    assert first.done()
    for step in (2, 3):
        compute(rig, step)
        looked = look(rig)
        answer(rig)
        assert looked.done()
        seen = rig.tracer.seen()
        assert seen is not None
        parts, _ = seen.take()
        assert [steps_of(of_stage) for of_stage in parts] == [[step], [step]]
    rig.tracer.look_away()
    assert (rig.asked[-1], rig.tracer.seen()) == (False, None)


def test_a_trace_and_who_watches_do_not_take_from_each_other() -> None:
    rig = Rig()
    look(rig)
    answer(rig)
    compute(rig, 1)
    rig.switch(True)
    answer(rig)
    compute(rig, 2)
    look(rig)
    answer(rig)
    compute(rig, 3)
    ended = rig.switch(False)
    assert rig.asked[-1] is True, "somebody watches on"
    answer(rig)
    compute(rig, 4)
    look(rig)
    answer(rig)
    trace = ended.result(timeout=0)
    assert trace is not None
    for lane in trace.stages:
        assert [span.step for span in lane.spans if span.activity == "compute"] == [2, 3]
        assert all(one.end == other.start for one, other in pairwise(lane.spans))
    seen = rig.tracer.seen()
    assert seen is not None
    assert [steps_of(of_stage) for of_stage in seen.take()[0]] == [[1, 2, 3, 4]] * 2
    rig.tracer.look_away()
    assert rig.asked[-1] is False


def test_whoever_looks_away_while_a_trace_ends_leaves_no_recording_on() -> None:
    rig = Rig()
    look(rig)
    answer(rig)
    rig.switch(True)
    answer(rig)
    rig.tracer.look_away()
    assert rig.asked == [True, True], "the trace goes on"
    look(rig)
    rig.switch(False)
    rig.tracer.look_away()
    assert rig.asked[2:] == [True, True, False]


def test_what_nobody_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collected, "MOST_SPANS", 6)
    rig = Rig()
    look(rig)
    answer(rig)
    for step in range(20):
        compute(rig, step)
        look(rig)
        answer(rig)
    seen = rig.tracer.seen()
    assert seen is not None
    parts, _ = seen.take()
    assert steps_of(parts[0]) == [0, 1]
    assert sum(part.dropped for part in parts[0]) >= 40
    compute(rig, 20)
    look(rig)
    answer(rig)
    assert steps_of(seen.take()[0][0]) == [20]


class FakeDriver:
    def __init__(self, error: PPInferError | None = None) -> None:
        self.calls: list[bool] = []
        self._error = error

    def trace(self, on: bool) -> Trace | None:
        self.calls.append(on)
        if on:
            return None
        if self._error is not None:
            raise self._error
        return Rig().trace()


def test_trouble_at_the_end_costs_no_results(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "t.json"
    path.parent.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be written"), Tracing(FakeDriver(), path, {}):
        path.parent.rmdir()
    said: list[str] = []
    with Tracing(FakeDriver(StageError("Stage 1 died.")), None, {}, said.append) as tracing:
        pass
    assert said == ["Stage 1 died."]
    assert tracing.trace is None


def test_what_ended_the_run_is_told_once() -> None:
    said: list[str] = []
    driver = FakeDriver(StageError("Stage 1 died."))
    with pytest.raises(StageError, match="in the run"), Tracing(driver, None, {}, said.append):
        raise StageError("Stage 1 died in the run.")
    assert said == []


def test_a_path_that_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    driver = FakeDriver()
    with pytest.raises(TraceError, match="No such file"):
        Tracing(driver, tmp_path / "none" / "t.json", {})
    assert driver.calls == []


# ---------------------------------------------------------------- real stages


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PPInferEngine]:
    model = make_model("llama", num_hidden_layers=5, max_position_embeddings=512)
    folder = save_model(model, tmp_path_factory.mktemp("model"))
    with PPInferEngine(folder, pp_size=2, micro_batch_size=3) as engine:
        yield engine


@pytest.mark.slow
def test_spans_cover_a_real_run(engine: PPInferEngine, tmp_path: Path) -> None:
    prompts = [random_ids(n, seed=n) for n in (5, 30, 12, 80, 3, 44)]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    untraced = engine.generate(prompts, params)
    with engine.trace(tmp_path / "t.json") as tracing:
        started = time.perf_counter()
        traced = engine.generate(prompts, params)
        seconds = time.perf_counter() - started
    assert [r.token_ids for r in traced] == [r.token_ids for r in untraced]
    trace = tracing.trace
    assert trace is not None
    assert read_trace(tmp_path / "t.json") == trace
    check_events(json.loads((tmp_path / "t.json").read_text())["traceEvents"])
    for lane in trace.lanes:
        covered = sum(span.end - span.start for span in lane.spans)
        assert covered >= 0.99 * seconds * 1e9
        assert covered >= 0.99 * (lane.spans[-1].end - lane.spans[0].start)
    found = analyse(trace)
    assert sorted(trace.steps) == list(range(min(trace.steps), max(trace.steps) + 1))
    assert found.total.steps == len(trace.steps)
    of_steps = [span for lane in trace.lanes for span in lane.spans if span.step >= 0]
    first, last = min(span.start for span in of_steps), max(span.end for span in of_steps)
    assert found.total.seconds == (last - first) / 1e9
    for section in filter(None, (found.total, found.steady)):
        for stage in section.stages:
            assert stage.uncovered_share <= 0.01
            assert stage.parts.keys() == {*WORK, *WAITS}
    for lane in trace.stages:
        assert {s.step for s in lane.spans if s.activity == "compute"} == set(trace.steps)
    assert {s.step for s in trace.driver.spans if s.activity == "commit"} == set(trace.steps)
    assert trace.title.endswith("fp32, 2 stages, 2 micro-batches")


@pytest.mark.slow
def test_an_engine_traces_again_and_again(engine: PPInferEngine) -> None:
    for _ in range(2):
        with engine.trace() as tracing, pytest.raises(TraceError), engine.trace():
            pass
        assert tracing.trace is not None
        assert tracing.trace.steps == {}


@pytest.mark.slow
def test_the_line_of_figures_says_where_time_went(engine: PPInferEngine) -> None:
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True))
    report = engine.report()
    assert 0 < report.driver_seconds < report.seconds
    assert " busy, waits: plan " in report.summary()
    assert report.summary().endswith("% busy")
