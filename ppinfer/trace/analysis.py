"""Where the time of a run went: the parts of each stage's time, and its bubbles by cause.

Two sections are told apart: the whole run, and its steady decode (see ``steady_decode``), where the
pipeline neither fills nor drains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ppinfer.percentile import percentile
from ppinfer.trace.intervals import (
    Computes,
    Union,
    clip,
    computes,
    in_flight,
    run_interval,
    steady_decode,
)
from ppinfer.trace.model import DRIVER_WORK, WAITS, WORK, Span, Trace

CAUSES = ("ramp up", "drain", "no request", "wait_plan", "wait_input", "send")
"""Why a stage waits: its first step has not reached it, its last has left it, nothing was in flight
anywhere for most of the wait, or else what the stage's clock says."""


@dataclass(frozen=True, slots=True)
class Part:
    """Spans of one kind. Times in seconds; ``share`` is of the section's wall time."""

    seconds: float
    share: float
    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, spans: Sequence[Span], wall: float) -> Part:
        lengths = [(span.end - span.start) / 1e9 for span in spans]
        if not lengths:
            return cls(0.0, 0.0, 0, 0.0, 0.0, 0.0)
        total = sum(lengths)
        p50, p99 = (percentile(lengths, share) for share in (0.5, 0.99))
        return cls(total, total / wall, len(lengths), p50, p99, max(lengths))


@dataclass(frozen=True, slots=True)
class Bubble:
    """A stage's waits of one cause; in ``driver_seconds`` of them the driver was at work."""

    stage: int
    cause: str
    part: Part
    driver_seconds: float


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage's part in a section. Shares are of the section's wall time.

    ``parts`` has every activity; ``uncovered_share`` is what no span covers; ``decode_step`` and
    ``prefill_step`` are medians of a step's compute and sampling, in seconds.
    """

    stage: int
    name: str
    steps: int
    parts: dict[str, Part]
    busy_share: float
    wait_share: float
    uncovered_share: float
    decode_step: float | None
    prefill_step: float | None


@dataclass(frozen=True, slots=True)
class Section:
    """``start`` and ``end`` are seconds of the trace. Steps count where the last stage ends them.

    ``tokens`` are those that the steps computed, ``new_tokens`` those that decode steps did.
    ``idle_share`` is the part of it in which no stage was at work: where stages work in turn each
    waits for the others, and only this is lost. ``driver_seconds_per_step`` is the driver's work:
    everything but waiting.
    """

    start: float
    end: float
    seconds: float
    steps: int
    tokens: int
    new_tokens: int
    stages: list[StageTime]
    idle_share: float
    bubbles: list[Bubble]
    driver: dict[str, Part]
    driver_seconds_per_step: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """``steady`` is ``None`` where the run, or the window asked for, has no steady decode."""

    total: Section
    steady: Section | None


def analyse(trace: Trace, window: tuple[float, float] | None = None) -> Analysis:
    """The run from its first plan to its last result, or what of it lies in a window (seconds)."""
    start, end = run_interval(trace)
    if window is not None:
        start = min(max(start, round(window[0] * 1e9)), end)
        end = max(min(end, round(window[1] * 1e9)), start)
    analyst = _Analyst(trace)
    steady = steady_decode(trace, analyst.computes, (start, end))
    return Analysis(
        total=analyst.section(start, end),
        steady=None if steady is None else analyst.section(*steady),
    )


class _Analyst:
    """What sections share is found once a trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.computes: list[Computes] = [computes(lane) for lane in trace.stages]
        self._in_flight = in_flight(trace.driver)
        self._driver_at_work = Union(
            (span.start, span.end) for span in trace.driver.spans if span.activity in DRIVER_WORK
        )

    def section(self, start: int, end: int) -> Section:
        trace, seconds = self._trace, max(end - start, 1) / 1e9
        clipped = [clip(lane.spans, start, end) for lane in trace.stages]
        facts = [trace.steps[step] for step in self._done(-1, start, end) if step in trace.steps]
        driver = _grouped(clip(trace.driver.spans, start, end), lambda span: span.activity)
        parts = {name: Part.of(spans, seconds) for name, spans in driver.items()}
        worked = sum(part.seconds for name, part in parts.items() if name in DRIVER_WORK)
        any_stage = Union(
            (span.start, span.end) for spans in clipped for span in spans if span.activity in WORK
        )
        return Section(
            start=start / 1e9,
            end=end / 1e9,
            seconds=seconds,
            steps=len(facts),
            tokens=sum(fact.tokens for fact in facts),
            new_tokens=sum(fact.decodes for fact in facts),
            stages=[
                self._stage(stage, clipped[stage], start, end) for stage in range(len(clipped))
            ],
            idle_share=1 - any_stage.overlap(start, end) / max(end - start, 1),
            bubbles=[
                bubble
                for stage, spans in enumerate(clipped)
                for bubble in self._bubbles(stage, spans, seconds)
            ],
            driver=parts,
            driver_seconds_per_step=worked / max(len(facts), 1),
        )

    def _done(self, stage: int, start: int, end: int) -> list[int]:
        """Steps that the stage finished in the interval."""
        if not self.computes:
            return []
        return [step for step, (_, at) in self.computes[stage].items() if start < at <= end]

    def _stage(self, stage: int, spans: list[Span], start: int, end: int) -> StageTime:
        wall = max(end - start, 1) / 1e9
        grouped = _grouped(spans, lambda span: span.activity)
        parts = {name: Part.of(grouped.get(name, []), wall) for name in (*WORK, *WAITS)}
        busy = sum(parts[name].share for name in WORK)
        waiting = sum(parts[name].share for name in WAITS)
        steps = self._done(stage, start, end)
        return StageTime(
            stage=stage,
            name=self._trace.stages[stage].name,
            steps=len(steps),
            parts=parts,
            busy_share=busy,
            wait_share=waiting,
            uncovered_share=1 - busy - waiting,
            decode_step=self._median_step(spans, steps, decode=True),
            prefill_step=self._median_step(spans, steps, decode=False),
        )

    def _median_step(self, spans: list[Span], steps: list[int], decode: bool) -> float | None:
        facts = self._trace.steps
        wanted = {s for s in steps if s in facts and facts[s].is_decode is decode}
        total: dict[int, int] = dict.fromkeys(wanted, 0)
        for span in spans:
            if span.step in wanted and span.activity in ("compute", "sample"):
                total[span.step] += span.end - span.start
        return sorted(total.values())[len(total) // 2] / 1e9 if total else None

    def _bubbles(self, stage: int, spans: list[Span], wall: float) -> list[Bubble]:
        waits = [span for span in spans if span.activity in WAITS]
        by_cause = _grouped(waits, lambda span: self._cause(stage, span))
        return [
            Bubble(
                stage=stage,
                cause=cause,
                part=Part.of(by_cause[cause], wall),
                driver_seconds=sum(
                    self._driver_at_work.overlap(span.start, span.end) for span in by_cause[cause]
                )
                / 1e9,
            )
            for cause in CAUSES
            if cause in by_cause
        ]

    def _cause(self, stage: int, span: Span) -> str:
        if span.activity == "send":
            return "send"
        done = self.computes[stage]
        if not done or span.end <= next(iter(done.values()))[0]:
            return "ramp up"
        if span.start >= next(reversed(done.values()))[1]:
            return "drain"
        length = span.end - span.start
        if (
            span.activity == "wait_plan"
            and 2 * self._in_flight.overlap(span.start, span.end) < length
        ):
            return "no request"
        return span.activity


def _grouped(spans: Iterable[Span], key: Callable[[Span], str]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(key(span), []).append(span)
    return found
