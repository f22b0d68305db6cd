"""What makes a table that was measured at the start agree with steps of a real run.

Stages measure parts of a step alone, and keep the best of several tries; in a run the same work
takes longer, by a factor that depends on how many rows a step has. So a short run is simulated and
traced, and the two traces are compared step by step: the schedule is the same, so their steps are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ppinfer.trace.model import DRIVER_WORK, Lane, Trace

Factors: TypeAlias = tuple[tuple[int, float], ...]
"""By rows, in ascending order; between two of them in proportion, beyond them the nearest."""

_FEWEST_STEPS = 6
_TRIMMED = 0.15
"""Part of the steps that is left out at either end."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """
    Attributes:
        decode: factors of the layers' time in a step without prompts, by sequences.
        prefill: the same in a step with prompts.
        sample: factors of head and drawing, by sequences that get a token.
        prepare, send: seconds of a step, on every stage.
        hop: seconds from the end of a send until the next stage computes, where that one waits.
        driver: seconds of the driver's work for a step.
    """

    decode: Factors = ()
    prefill: float = 1.0
    sample: Factors = ()
    prepare: float = 60e-6
    send: float = 60e-6
    hop: float = 100e-6
    driver: float = 150e-6


NONE = Correction()


def at(factors: Factors, rows: int) -> float:
    """The factor for so many rows; 1 where nothing is known."""
    if not factors:
        return 1.0
    after = bisect_left(factors, (rows,))
    if after == 0:
        return factors[0][1]
    if after == len(factors):
        return factors[-1][1]
    (low, first), (high, last) = factors[after - 1], factors[after]
    return first + (last - first) * (rows - low) / (high - low)


@dataclass
class _Steps:
    """Seconds of the same steps; what disturbed a few of them is left out."""

    pairs: list[tuple[float, float]] = field(default_factory=list)

    def add(self, measured: float, simulated: float) -> None:
        if simulated > 0:
            self.pairs.append((measured, simulated))

    @property
    def is_enough(self) -> bool:
        return len(self.pairs) >= _FEWEST_STEPS

    @property
    def factor(self) -> float:
        if not self.is_enough:
            return 1.0
        ordered = sorted(self.pairs, key=lambda pair: pair[0] / pair[1])
        cut = int(_TRIMMED * len(ordered))
        kept = ordered[cut : len(ordered) - cut]
        return sum(measured for measured, _ in kept) / sum(simulated for _, simulated in kept)


@dataclass
class Comparison:
    """Takes in pairs of traces of the same runs, measured and simulated."""

    _decode: dict[int, _Steps] = field(default_factory=dict)
    _sample: dict[int, _Steps] = field(default_factory=dict)
    _prefill: _Steps = field(default_factory=_Steps)
    _prepare: list[float] = field(default_factory=list)
    _send: list[float] = field(default_factory=list)
    _hop: list[float] = field(default_factory=list)
    _driver: list[float] = field(default_factory=list)

    def add(self, measured: Trace, simulated: Trace) -> None:
        """The same requests, given to an idle engine and to the simulator."""
        if not measured.steps or not simulated.steps:
            return
        shift = min(measured.steps) - min(simulated.steps)
        for real, model in zip(measured.stages, simulated.stages, strict=True):
            ours, theirs = _seconds(real), _seconds(model)
            for step, facts in simulated.steps.items():
                if measured.steps.get(step + shift) != facts:
                    continue
                mine, other = ours.get(step + shift, {}), theirs.get(step, {})
                sums = self._prefill
                if facts.is_decode:
                    sums = self._decode.setdefault(facts.sequences, _Steps())
                sums.add(mine.get("compute", 0.0), other.get("compute", 0.0))
                drawn = self._sample.setdefault(facts.sequences, _Steps())
                if facts.is_decode:
                    drawn.add(mine.get("sample", 0.0), other.get("sample", 0.0))
                self._prepare.append(mine.get("prepare", 0.0))
                self._send.append(mine.get("send", 0.0))
        for real, after in zip(measured.stages, measured.stages[1:], strict=False):
            self._hop += _hops(real, after)
        worked = sum(
            span.end - span.start for span in measured.driver.spans if span.activity in DRIVER_WORK
        )
        self._driver.append(worked / 1e9 / len(measured.steps))

    def correction(self) -> Correction:
        return Correction(
            decode=_factors(self._decode),
            prefill=self._prefill.factor,
            sample=_factors(self._sample),
            prepare=_median(self._prepare, NONE.prepare),
            send=_median(self._send, NONE.send),
            hop=_median(self._hop, NONE.hop),
            driver=_median(self._driver, NONE.driver),
        )


def _seconds(lane: Lane) -> dict[int, dict[str, float]]:
    """Of each step and activity."""
    found: dict[int, dict[str, float]] = {}
    for span in lane.spans:
        if span.step >= 0:
            parts = found.setdefault(span.step, {})
            parts[span.activity] = parts.get(span.activity, 0.0) + (span.end - span.start) / 1e9
    return found


def _hops(sender: Lane, receiver: Lane) -> Iterable[float]:
    sent = {span.step: span.end for span in sender.spans if span.activity == "send"}
    waited = {span.step for span in receiver.spans if span.activity == "wait_input"}
    for span in receiver.spans:
        if span.activity == "compute" and span.step in waited and span.step in sent:
            yield max(0.0, (span.start - sent[span.step]) / 1e9)


def _factors(sums: dict[int, _Steps]) -> Factors:
    return tuple((rows, found.factor) for rows, found in sorted(sums.items()) if found.is_enough)


def _median(values: Sequence[float], default: float) -> float:
    return sorted(values)[len(values) // 2] if values else default
