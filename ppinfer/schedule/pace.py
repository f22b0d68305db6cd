"""How long a pipeline takes, predicted from what its stages measured: pure arithmetic, in seconds.

A round gives every running sequence one token. With ``m`` micro-batches it lasts as long as the
longest of these:

- one micro-batch on its way around: every stage's step, and the messages between them;
- the busiest stage: one step for each micro-batch;
- where stages share a host: all the work of the round on all its cores.

With one micro-batch the first is all there is: the stages work in turn, so each may use every core.
Several micro-batches on more stages than there are cores are under way for longer: a stage whose
input comes while others compute waits until the operating system gives it a core.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from statistics import median

import msgspec

from ppinfer.messages import Points, StepCosts
from ppinfer.schedule.partition import StageRange

HOP_SECONDS = 1e-4
"""A message from one stage to the next. It only weighs where steps are shorter than a millisecond,
and a better guess would need links before the model is cut."""

CORE_WAIT_SECONDS = 1.5e-3
"""What a step waits for a core, on each of several stages that share fewer: an operating system
lets whoever computes go on for milliseconds. Measured in traces of four stages on two cores
(Linux 6.18, 250 ticks/s): 0.7 to 1.3 ms until the next stage computes, and as long in sends."""


class Measured(msgspec.Struct, frozen=True):
    """What the stages measured, each tuple in their order.

    Attributes:
        side_by_side: while the stages of a host worked at the same time, each on its own cores.
        in_turn: one stage alone on all cores; empty where stages do not share a host's cores.
        cores: cores that all stages share; 0 where each has its own.
    """

    side_by_side: tuple[StepCosts, ...]
    in_turn: tuple[StepCosts, ...] = ()
    cores: int = 0

    def is_valid(self, num_stages: int) -> bool:
        """Whether these are usable tables of so many stages."""
        tables = (*self.side_by_side, *self.in_turn)
        return (
            len(self.side_by_side) == num_stages
            and len(self.in_turn) in (0, num_stages)
            and self.cores >= 0
            and all(
                costs.threads >= 1
                and costs.context >= 0
                and 0 <= costs.decode_context < math.inf
                and 0 <= costs.prefill_context < math.inf
                and all(Curve.is_valid(points) for points in parts_of(costs))
                for costs in tables
            )
        )


def parts_of(costs: StepCosts) -> tuple[Points, ...]:
    return (costs.decode, costs.prefill, costs.head, costs.embed, costs.prepare)


def least(tables: Sequence[StepCosts]) -> StepCosts:
    """One table out of several of the same work: what disturbs a measurement only prolongs it.

    The slopes are differences, which it may make smaller as well: of those the one in the middle.
    """
    joined = []
    for curves in zip(*map(parts_of, tables), strict=True):
        seconds: dict[int, float] = {}
        for rows, took in sorted(chain.from_iterable(curves)):
            seconds.setdefault(rows, took)
        joined.append(tuple(seconds.items()))
    decode, prefill, head, embed, prepare = joined
    return StepCosts(
        tables[0].threads,
        decode,
        prefill,
        head,
        embed,
        prepare,
        context=tables[0].context,
        decode_context=median(costs.decode_context for costs in tables),
        prefill_context=median(costs.prefill_context for costs in tables),
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds against rows: linear between points, proportional to rows after the last.

    More rows never take less time, nor more than in proportion, since they could be divided: a
    point that says otherwise was disturbed, and is lowered.
    """

    points: Points

    def __post_init__(self) -> None:
        assert self.is_valid(self.points)
        rows = [rows for rows, _ in self.points]
        seconds = [seconds for _, seconds in self.points]
        for i in range(1, len(rows)):
            seconds[i] = min(seconds[i], seconds[i - 1] * rows[i] / rows[i - 1])
        rising = list(accumulate(reversed(seconds), min))[::-1]
        object.__setattr__(self, "points", tuple(zip(rows, rising, strict=True)))

    @staticmethod
    def is_valid(points: Points) -> bool:
        """At least one point, rows from 1 in ascending order, and times that are times."""
        rows = [rows for rows, _ in points]
        return (
            bool(points)
            and rows == sorted(set(rows))
            and rows[0] >= 1
            and all(0 <= seconds < math.inf for _, seconds in points)
        )

    def at(self, rows: float) -> float:
        points = self.points
        last_rows, last_seconds = points[-1]
        if rows >= last_rows:
            return last_seconds * rows / last_rows
        after = bisect_left(points, (rows,))
        if after == 0:
            return points[0][1]
        (low, low_seconds), (high, high_seconds) = points[after - 1], points[after]
        return low_seconds + (high_seconds - low_seconds) * (rows - low) / (high - low)


class StagePace:
    """The parts of one stage's step at any number of rows."""

    def __init__(self, costs: StepCosts) -> None:
        self.costs, self.threads = costs, costs.threads
        self.layer, self.prefill = Curve(costs.decode), Curve(costs.prefill)
        self.head, self.embed = Curve(costs.head), Curve(costs.embed)
        self.prepare = Curve(costs.prepare)


@dataclass(frozen=True, slots=True)
class PipelinePace:
    """Stages with their layers. ``cores`` are those that all of them share, or 0."""

    stages: Sequence[StagePace]
    ranges: Sequence[StageRange]
    cores: int = 0

    def round_seconds(self, num_sequences: int, micro_batches: int) -> float:
        """Time for one token of each sequence, in equal micro-batches.

        A size need not be whole: what rounding costs would only make neighbouring numbers of
        sequences prefer different numbers of micro-batches.
        """
        steps = self._steps(num_sequences / micro_batches)
        around = sum(steps) + len(steps) * self._hop(micro_batches)
        if micro_batches == 1:
            return around
        busiest = micro_batches * max(steps)
        return max(around, busiest, self._on_all_cores(micro_batches * sum(steps)))

    def prefill_seconds(self, num_tokens: int, chunk: int, turns: int) -> float:
        """Time until ``num_tokens`` of prompts are through, ``chunk`` at a time, in so many steps
        that may be under way at once."""
        num_chunks = -(-num_tokens // chunk)
        steps = [
            (last - first) * stage.prefill.at(chunk)
            + (stage.embed.at(chunk) if index == 0 else 0.0)
            + (stage.head.at(1) if index == len(self.ranges) - 1 else 0.0)
            for index, (stage, (first, last)) in enumerate(
                zip(self.stages, self.ranges, strict=True)
            )
        ]
        around = sum(steps) + len(steps) * self._hop(turns)
        if turns == 1:
            return num_chunks * around
        pace = max(*steps, around / turns, self._on_all_cores(sum(steps)))
        return around + (num_chunks - 1) * pace

    def _steps(self, rows: float) -> list[float]:
        """Each stage's step at so many sequences."""
        layer = {stage: stage.layer.at(rows) for stage in set(self.stages)}
        prepare = {stage: stage.prepare.at(rows) for stage in layer}
        seconds = [
            (last - first) * layer[stage] + prepare[stage]
            for stage, (first, last) in zip(self.stages, self.ranges, strict=True)
        ]
        seconds[0] += self.stages[0].embed.at(rows)
        seconds[-1] += self.stages[-1].head.at(rows)
        return seconds

    def _hop(self, micro_batches: int) -> float:
        """From the end of a step on one stage until the next stage computes."""
        wanted = sum(stage.threads for stage in self.stages)
        waits = micro_batches > 1 and 0 < self.cores < wanted
        return HOP_SECONDS + (CORE_WAIT_SECONDS if waits else 0.0)

    def _on_all_cores(self, seconds: float) -> float:
        """How long work takes that lasts so long on one stage's threads, perfectly divided."""
        return seconds * self.stages[0].threads / self.cores if self.cores else 0.0
