"""Where to cut the model, how many micro-batches to run, and how much prompt a step computes.

Chosen from measured times where the user left it open; pure functions, the same answer for the
same measurements. Splitting a batch that waits for memory reads the weights once for each part, and
is worth it only where arithmetic weighs more: so the number of micro-batches depends on how many
sequences run, and a table has it for every number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ppinfer.config import EngineConfig
from ppinfer.messages import StepCosts
from ppinfer.schedule.pace import Measured, PipelinePace, StagePace
from ppinfer.schedule.partition import LayerCosts, StageRange, partition_layers
from ppinfer.schedule.step_model import StepModel

DEFAULT_PREFILL_TOKENS = 512
"""Where nothing was measured."""

PREFILL_CHUNKS = (128, 256, 512, 1024, 2048)

_PREFILL_TOKENS = 2048
"""Prompt tokens that wait together, typically: long enough for several chunks, short enough that
filling and draining the pipeline counts."""

_MARGIN = 0.03
"""A gain below this part is noise: then fewer micro-batches and smaller chunks are better."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is in force.

    Attributes:
        micro_batches: their number at 1, 2, … running sequences.
        threads: CPU threads of a step with 1, 2, … micro-batches; 0 is each stage's own share.
        turns: steps that keep every stage at work; prompts use those that no micro-batch does.
        max_prefill_tokens: most prompt tokens that one step computes.
        steps: what a step takes; ``None`` where nothing was measured.
        choices: what measurement chose, each a phrase for people with the predicted figures.
    """

    micro_batches: tuple[int, ...]
    threads: tuple[int, ...]
    max_prefill_tokens: int
    turns: int = 1
    steps: StepModel | None = None
    choices: tuple[str, ...] = ()

    @property
    def num_slots(self) -> int:
        """The most micro-batches that ever run, or turns where these are more."""
        return max(map(self.turns_for, self.micro_batches))

    def micro_batches_for(self, num_sequences: int) -> int:
        """How many micro-batches so many running sequences, at least one, are divided over."""
        return self.micro_batches[min(num_sequences, len(self.micro_batches)) - 1]

    def turns_for(self, micro_batches: int) -> int:
        """How many steps may be under way while so many micro-batches run."""
        in_turn = self.threads_for(micro_batches) > self.threads[-1]  # each step has all cores
        return micro_batches if in_turn else max(micro_batches, self.turns)

    def threads_for(self, micro_batches: int) -> int:
        """CPU threads that a stage's step may use while so many micro-batches run."""
        return self.threads[min(micro_batches, len(self.threads)) - 1]


def untuned(config: EngineConfig, threads: tuple[int, ...] = (0,)) -> Tuning:
    """What was asked for, or else the defaults: a micro-batch for each stage."""
    return Tuning(
        micro_batches=_at_most(config.micro_batches, config.max_sequences),
        threads=threads,
        max_prefill_tokens=config.max_prefill_tokens or DEFAULT_PREFILL_TOKENS,
        turns=_turns(config),
    )


def tune(
    measured: Measured,
    sizes: LayerCosts,
    config: EngineConfig,
    memory_limits: Sequence[int] | None = None,
) -> tuple[tuple[StageRange, ...], Tuning]:
    """Layer ranges of the stages, and the tuning of the pipeline that they make.

    The cut is made for a full engine: for the number of micro-batches that is best then. It is
    balanced for decoding, where a run spends most of its time.

    Args:
        sizes: number and bytes of the layers; the costs in it are not used.
        memory_limits: as for ``partition_layers``.

    Raises:
        ConfigError, CapacityError: see ``partition_layers``.
    """
    return _Tuner(measured, sizes, config, memory_limits).tune()


class _Tuner:
    def __init__(
        self,
        measured: Measured,
        sizes: LayerCosts,
        config: EngineConfig,
        memory_limits: Sequence[int] | None,
    ) -> None:
        self._sizes, self._config, self._limits = sizes, config, memory_limits
        self._cores = measured.cores
        self._capacity = config.max_sequences
        self._many = _paces(measured.side_by_side)
        self._one = self._many
        self._cut = cache(self._partition)
        if measured.in_turn:
            self._one = self._faster(_paces(measured.in_turn))

    def _faster(self, in_turn: list[StagePace]) -> list[StagePace]:
        """The paces of one micro-batch: on all cores, unless so many threads are no gain."""
        ranges = partition_layers(self._sizes, self._config.pp_size, "even")
        numbers = range(1, self._capacity + 1)

        def total(stages: list[StagePace]) -> float:
            pace = PipelinePace(stages, ranges)
            return sum(pace.round_seconds(n, 1) for n in numbers)

        return in_turn if total(in_turn) < total(self._many) else self._many

    def tune(self) -> tuple[tuple[StageRange, ...], Tuning]:
        full = self._capacity
        best = _fewest({m: self._seconds(full, m, self._ranges(m)) for m in self._numbers(full)})
        ranges = self._ranges(best)
        table = tuple(
            _fewest({m: self._seconds(n, m, ranges) for m in self._numbers(n)})
            for n in range(1, full + 1)
        )
        threads = (self._one[0].threads, self._many[0].threads) if self._cores else (0,)
        tuning = Tuning(
            micro_batches=table,
            threads=threads,
            max_prefill_tokens=self._config.max_prefill_tokens or DEFAULT_PREFILL_TOKENS,
            turns=_turns(self._config, self._cores // threads[-1] if self._cores else 0),
            steps=StepModel.fit(
                (self._one if table[-1] == 1 else self._many)[0].costs, len(self._sizes.layers)
            ),
        )
        if self._config.max_prefill_tokens is None:
            seconds = {chunk: self._prefill(ranges, tuning, chunk) for chunk in PREFILL_CHUNKS}
            tuning = replace(tuning, max_prefill_tokens=_fewest(seconds))
        return ranges, replace(tuning, choices=tuple(self._choices(ranges, tuning)))

    def _numbers(self, num_sequences: int) -> list[int]:
        """Numbers of micro-batches to think of; more than twice the stages never helps."""
        if self._config.num_micro_batches is not None:
            return [min(num_sequences, self._config.num_micro_batches)]
        pp = self._config.pp_size
        numbers = {*range(1, min(2 * pp, 8) + 1), pp // 2, pp, pp + 1, 3 * pp // 2, 2 * pp}
        return sorted(number for number in numbers if 1 <= number <= num_sequences)

    def _pace(self, micro_batches: int, ranges: tuple[StageRange, ...]) -> PipelinePace:
        stages = self._one if micro_batches == 1 else self._many
        return PipelinePace(stages, ranges, self._cores)

    def _seconds(self, n: int, micro_batches: int, ranges: tuple[StageRange, ...]) -> float:
        return self._pace(micro_batches, ranges).round_seconds(n, micro_batches)

    def _ranges(self, micro_batches: int) -> tuple[StageRange, ...]:
        return self._cut(-(-self._capacity // micro_batches), micro_batches == 1)

    def _partition(self, rows: int, alone: bool) -> tuple[StageRange, ...]:
        costs = [
            replace(
                self._sizes,
                layers=(stage.layer.at(rows),) * len(self._sizes.layers),
                embed=stage.embed.at(rows),
                head=stage.head.at(rows),
            )
            for stage in (self._one if alone else self._many)
        ]
        return partition_layers(costs, self._config.pp_size, self._config.partition, self._limits)

    def _prefill(self, ranges: tuple[StageRange, ...], tuning: Tuning, chunk: int) -> float:
        """Seconds for typical prompts in a full engine."""
        micro_batches = tuning.micro_batches[-1]
        pace = self._pace(micro_batches, ranges)
        return pace.prefill_seconds(_PREFILL_TOKENS, chunk, tuning.turns_for(micro_batches))

    # ------------------------------------------------------------ words

    def _choices(self, ranges: tuple[StageRange, ...], tuning: Tuning) -> list[str]:
        config, full, m = self._config, self._capacity, tuning.micro_batches[-1]
        stages = self._one if m == 1 else self._many
        words = []
        if config.partition == "auto" and config.pp_size > 1:
            rows = -(-full // m)
            layers = "+".join(str(last - first) for first, last in ranges)
            words.append(
                f"layers {layers} (one takes {_ms(stages[0].layer.at(rows))}, the head "
                f"{_ms(stages[-1].head.at(rows))} at {_count(rows, 'sequence')})"
            )
        if config.num_micro_batches is None:
            words.append(self._micro_batch_words(ranges, tuning))
        if config.max_prefill_tokens is None:
            chunk = tuning.max_prefill_tokens
            rate = _PREFILL_TOKENS / self._prefill(ranges, tuning, chunk)
            words.append(f"prefill of {chunk} tokens a step: {rate:,.0f} tokens/s predicted")
        return words

    def _micro_batch_words(self, ranges: tuple[StageRange, ...], tuning: Tuning) -> str:
        full, m = self._capacity, tuning.micro_batches[-1]
        seconds = {n: self._seconds(full, n, ranges) for n in self._numbers(full)}
        words = f"{_count(m, 'micro-batch')} of up to {-(-full // m)}{self._manner(m)}"
        words += f": {_ms(seconds[m])} a token predicted"
        others = {n: s for n, s in seconds.items() if (n == 1) != (m == 1)}
        if others:
            other = min(others, key=others.__getitem__)
            words += f" (against {_ms(others[other])} with {other}{self._manner(other)})"
        since = next(n for n in range(full, 0, -1) if n == 1 or tuning.micro_batches[n - 2] != m)
        fewer = sorted(set(tuning.micro_batches[: since - 1]) - {m})
        if fewer and since > m:
            listed = " or ".join(str(number) for number in fewer)
            words += f"; {listed} below {since} sequences"
        return words

    def _manner(self, micro_batches: int) -> str:
        """How the stages work, in words that follow a number of micro-batches."""
        if self._config.pp_size == 1 or not self._cores:
            return ""
        threads = (self._one if micro_batches == 1 else self._many)[0].threads
        cores = _count(threads, "core")
        return f", stages in turn on {cores}" if micro_batches == 1 else f" on {cores} a stage"


def _paces(stages: Sequence[StepCosts]) -> list[StagePace]:
    """One for each stage; stages with the same costs share one."""
    paces = {costs: StagePace(costs) for costs in stages}
    return [paces[costs] for costs in stages]


def _at_most(micro_batches: int, full: int) -> tuple[int, ...]:
    """So many micro-batches, as far as there are sequences to fill them."""
    return tuple(min(n, micro_batches) for n in range(1, full + 1))


def _turns(config: EngineConfig, at_once: int = 0) -> int:
    """A step for each stage, or for as many as can work at once where those are fewer."""
    return min(config.pp_size, at_once or config.pp_size)


def _fewest(seconds: dict[int, float]) -> int:
    """The least key, in ascending order, whose value is all but the best."""
    enough = min(seconds.values()) * (1 + _MARGIN)
    return next(key for key, value in seconds.items() if value <= enough)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds * 1e3:,.0f} ms"


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("ch") else "s"
    return f"{number} {what}" if number == 1 else f"{number} {what}{plural}"
