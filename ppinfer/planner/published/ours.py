"""What ppinfer's own schedule would give on the same devices, and where the difference is from.

From the pipeline as it was to ppinfer's, one thing is changed after the other, and what each adds
is its part of the difference. Launches, memory and arithmetic cost the same throughout, as in eager
code, so down to ``OWN_SCHEDULE`` the difference is the schedule's alone. What follows is ppinfer's
too, but not its schedule's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ppinfer.config import EngineConfig
from ppinfer.errors import CapacityError
from ppinfer.planner.assemble import Assembled, assemble
from ppinfer.planner.published.calibrate import Calibrated, pipeline_stages
from ppinfer.planner.published.eager import EagerCost
from ppinfer.planner.published.figures import Cell
from ppinfer.planner.published.peaks import STAGES
from ppinfer.planner.published.systems import pipeline_seconds
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import static_batch

OWN_SCHEDULE = "micro-batches chosen"

CHANGES = {
    "as it was": "the model of the pipeline, whether or not it had the memory",
    "logits of drawn rows": "not of every row of the prompts",
    "head last": "the last stage draws, so hidden states do not come back; layers are cut by time",
    "no lockstep": "the real schedule, round by round: a stage waits for its input alone, not for "
    "an exchange with its neighbours after each step",
    "no drain": "the next micro-batch begins as soon as one ends",
    "whole batch at once": "as many sequences run as the KV cache holds, in two micro-batches",
    "prompts in chunks": "of a length that the tuner chooses",
    OWN_SCHEDULE: "their number is tried in simulation, as `ppinfer plan` does",
    "started before": "without what the first run of a process costs: an engine has measured its "
    "steps before it takes requests",
    "cache in place": "keys and values of a token are written into blocks, and nothing is copied",
}
"""In the order in which they are made, and what each means."""

_NUMBERS = (1, STAGES, 2 * STAGES)
"""Of micro-batches, that are tried."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """
    Attributes:
        rates: output tokens/s after each of ``CHANGES``; none without the memory for a sequence.
        at_once: sequences of the batch that the KV cache holds.
        micro_batches, chunk, layers: as chosen; layers of each stage.
    """

    cell: Cell
    rates: tuple[float, ...]
    at_once: int = 0
    micro_batches: int = 0
    chunk: int = 0
    layers: tuple[int, ...] = ()

    @property
    def rate(self) -> float | None:
        """Of ppinfer's schedule, with all else as it was; ``None`` is out of memory."""
        return self.rates[list(CHANGES).index(OWN_SCHEDULE)] if self.rates else None

    @property
    def gains(self) -> list[float]:
        """What each change after the first adds, as a part of the rate before it."""
        return [after / before - 1 for before, after in pairwise(self.rates)]


def compare(pipeline: Calibrated, cell: Cell) -> Ours:
    """ppinfer in place of the pipeline, with the parameters that were found for it."""
    try:
        return _Comparison(pipeline, cell).run()
    except CapacityError:
        return Ours(cell=cell, rates=())


class _Comparison:
    def __init__(self, pipeline: Calibrated, cell: Cell) -> None:
        self._found, self._figures, self._cell = pipeline.parameters, pipeline.figures, cell
        self._start = self._found.start_seconds
        self._efficiency = self._found.efficiency(cell.dtype)
        self._device = self._figures.with_memory(self._found.usable_gib)

    def run(self) -> Ours:
        cell, start = self._cell, self._start
        tried = [self._assembled(number) for number in _NUMBERS if number <= cell.batch]
        took = [self._seconds(assembled, cell.batch) for assembled in tried]
        warm = min(took)
        chosen = tried[took.index(warm)]
        in_place = self._seconds(chosen, cell.batch, concatenates=False)
        before = [*self._steps(), took[_NUMBERS.index(STAGES)], warm]
        seconds = [*(start + step for step in before), warm, in_place]
        pipeline = chosen.pipeline
        return Ours(
            cell=cell,
            rates=tuple(cell.new_tokens / step for step in seconds),
            at_once=self._at_once(chosen),
            micro_batches=pipeline.tuning.micro_batches_for(self._at_once(chosen)),
            chunk=pipeline.tuning.max_prefill_tokens,
            layers=tuple(last - first for first, last in chosen.ranges),
        )

    def _steps(self) -> Iterator[float]:
        """From the pipeline as it was to the whole batch at once."""
        cell, link = self._cell, self._figures.link
        stages = pipeline_stages(self._figures, cell, self._found)
        yield pipeline_seconds(cell, stages, link)
        yield pipeline_seconds(cell, stages, link, all_logits=False)
        a_round, whole_prompts = STAGES * cell.micro_batch, cell.prompt * cell.micro_batch
        rounds = self._assembled(STAGES, a_round, whole_prompts)
        cut = [self._stage(layers) for layers in rounds.ranges]
        yield pipeline_seconds(cell, cut, link, all_logits=False, head_first=False)
        yield cell.batch // a_round * self._seconds(rounds, a_round)
        yield self._seconds(rounds, cell.batch)
        yield self._seconds(self._assembled(STAGES, chunk=whole_prompts), cell.batch)

    def _assembled(
        self, micro_batches: int, at_once: int | None = None, chunk: int | None = None
    ) -> Assembled:
        cell = self._cell
        config = EngineConfig(
            pp_size=STAGES,
            num_micro_batches=micro_batches,
            max_num_seqs=at_once or cell.batch,
            max_prefill_tokens=chunk,
            max_model_len=cell.prompt + cell.new,
        )
        return assemble(
            cell.model,
            [self._device] * STAGES,
            [self._figures.link] * (STAGES - 1),
            cell.dtype,
            config,
            context=cell.prompt + cell.new // 2,
            efficiency=self._efficiency,
        )

    def _seconds(self, assembled: Assembled, batch: int, *, concatenates: bool = True) -> float:
        """Of a run at the costs of eager code."""
        stages = tuple(self._stage(layers, concatenates) for layers in assembled.ranges)
        arrivals = static_batch(batch, self._cell.prompt, self._cell.new)
        return simulate(replace(assembled.pipeline, stages=stages), arrivals).seconds

    def _stage(self, layers: tuple[int, int], concatenates: bool = True) -> EagerCost:
        cell = self._cell
        return EagerCost(
            self._device, cell.model, layers, cell.dtype, self._efficiency, concatenates
        )

    def _at_once(self, assembled: Assembled) -> int:
        pipeline, cell = assembled.pipeline, self._cell
        blocks = -(-(cell.prompt + cell.new) // pipeline.block_size)
        return min(cell.batch, pipeline.num_blocks // blocks)
