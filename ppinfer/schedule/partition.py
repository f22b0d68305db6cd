"""Which layers each stage holds: contiguous ranges that cover the decoder exactly once.

Works for every layer count that is at least the stage count. Knows nothing about models or
devices: a cost is any non-negative number whose unit is the same for all (seconds, say).

The slowest stage sets the pace of a pipeline, so ``"auto"`` finds the least possible maximum of the
stages' costs. That is the chain partitioning problem (Bokhari 1988); a dynamic program over
prefix sums solves it exactly. Costs are scaled to integers first, so that splits which are equally
good compare equal and rounding never chooses between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TypeAlias

from ppinfer.config import Partition
from ppinfer.errors import CapacityError, ConfigError

StageRange: TypeAlias = tuple[int, int]
"""First layer of a stage and the one after its last."""


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """What each part of the model costs a step, and the memory it takes.

    Attributes:
        layers: cost of each decoder layer.
        embed: cost of the embedding, on the first stage.
        head: cost of norm, head and sampling, on the last stage.
        layer_bytes: memory of each decoder layer, KV cache included where it counts.
        embed_bytes, head_bytes: memory of embedding and head. Where a single stage shares one
            tensor between the two, the caller counts it once.
    """

    layers: tuple[float, ...]
    embed: float
    head: float
    layer_bytes: tuple[int, ...]
    embed_bytes: int
    head_bytes: int

    def __post_init__(self) -> None:
        assert self.layers, "a model has at least one layer"
        assert len(self.layers) == len(self.layer_bytes), "one size for each layer"
        assert all(c >= 0 and math.isfinite(c) for c in (*self.layers, self.embed, self.head))


def partition_layers(
    costs: LayerCosts | Sequence[LayerCosts],
    num_stages: int,
    how: Partition = "auto",
    memory_limits: Sequence[int] | None = None,
) -> tuple[StageRange, ...]:
    """Contiguous layer ranges, one a stage, in order.

    ``"auto"`` minimises the greatest stage cost within the memory limits; among the best it takes
    the most even split (least sum of squared stage costs), and of those the one with the fewest
    layers on the last stage, then on the one before it, and so on. ``"even"`` gives counts that
    differ by at most one, the larger ones to the earlier stages, since the last stage also has the
    head. A tuple gives the counts themselves.

    Args:
        costs: of the model, or where stages differ in speed, of the model on each stage.
        memory_limits: most bytes of weights each stage may hold; ``None`` for no limits.

    Raises:
        ConfigError: more stages than layers, or counts that do not fit the model.
        CapacityError: no split, or not the split asked for, fits the limits.
    """
    each = [costs] * num_stages if isinstance(costs, LayerCosts) else list(costs)
    num_layers = len(each[0].layers)
    assert num_stages >= 1
    assert len(each) == num_stages, "one model of costs for each stage"
    assert memory_limits is None or len(memory_limits) == num_stages, "one limit for each stage"
    if num_stages > num_layers:
        raise ConfigError(
            f"{num_stages} stages are more than the model's {num_layers} layers, and every stage "
            f"needs at least one; use {num_layers} stages or fewer."
        )
    # Layer 0 is always on the first stage and the last layer on the last: so are embed and head.
    size = _prefix_sums([each[0].embed_bytes, *each[0].layer_bytes, each[0].head_bytes])
    if how == "auto":
        return _auto([_prefix_sums(c) for c in _to_integers(each)], size, memory_limits)
    if how == "even":
        whole, extra = divmod(num_layers, num_stages)
        counts = tuple(whole + (stage < extra) for stage in range(num_stages))
    else:
        counts = how
        _check_counts(counts, num_layers, num_stages)
    ranges = tuple(pairwise(accumulate(counts, initial=0)))
    _check_memory(ranges, size, memory_limits)
    return ranges


def _prefix_sums(values: Sequence[int]) -> list[int]:
    """``sums[j] - sums[i]`` is the total of layers i to j - 1, ends included where they belong."""
    first, *layers, last = values
    layers[0] += first
    layers[-1] += last
    return list(accumulate(layers, initial=0))


def _to_integers(costs: Sequence[LayerCosts]) -> list[list[int]]:
    """Embed, layers and head times their least common denominator: exact for any float."""
    exact = [[Fraction(value) for value in (c.embed, *c.layers, c.head)] for c in costs]
    scale = math.lcm(*{value.denominator for values in exact for value in values})
    return [[value.numerator * (scale // value.denominator) for value in part] for part in exact]


def _auto(
    costs: list[list[int]], size: list[int], memory_limits: Sequence[int] | None
) -> tuple[StageRange, ...]:
    num_stages = len(costs)
    limits = [math.inf] * num_stages if memory_limits is None else list(memory_limits)
    least_max, _ = _search(costs, size, limits, math.inf, max)
    if least_max == math.inf:
        assert memory_limits is not None
        raise CapacityError(
            f"The model does not fit: its {len(size) - 1} layers, embedding and head need "
            f"{size[-1]:,} bytes, the largest layer with what stands beside it "
            f"{max(b - a for a, b in pairwise(size)):,}, and no split fits {num_stages} stages "
            f"that have room for {_numbers(memory_limits)} bytes; use more stages, a smaller "
            "dtype, or devices with more memory."
        )
    _, ranges = _search(costs, size, limits, least_max, lambda total, new: total + new * new)
    return ranges


def _search(
    costs: list[list[int]],
    size: list[int],
    limits: Sequence[float],
    most: float,
    join: Callable[[float, float], float],
) -> tuple[float, tuple[StageRange, ...]]:
    """The split with the least joined stage costs, no stage above ``most`` nor its memory limit.

    ``join`` adds a stage's cost to the value of the stages before it. It must not fall below
    ``join(0, cost)``, which grows with the cost: so once a stage alone is no better than the best
    split found, a longer stage need not be tried, and few are.

    Returns the least value (infinite where nothing fits) and the stages' ranges.
    """
    num_layers, num_stages = len(size) - 1, len(limits)
    # values[j]: the least value of the stages so far when they hold layers 0 to j - 1.
    values: list[float] = [0, *[math.inf] * num_layers]
    cuts: list[list[int]] = []  # cuts[stage][j]: where that stage begins in the split of values[j]
    for stage, (cost, limit) in enumerate(zip(costs, limits, strict=True)):
        before, values = values, [math.inf] * (num_layers + 1)
        cut = [0] * (num_layers + 1)
        for last in range(stage + 1, num_layers - (num_stages - stage - 1) + 1):
            for first in range(last - 1, stage - 1, -1):
                new = cost[last] - cost[first]
                if new > most or size[last] - size[first] > limit or join(0, new) >= values[last]:
                    break
                if before[first] < math.inf and (value := join(before[first], new)) < values[last]:
                    values[last], cut[last] = value, first
        cuts.append(cut)
    ranges: list[StageRange] = []
    last = num_layers
    for cut in reversed(cuts):
        ranges.append((cut[last], last))
        last = cut[last]
    return values[num_layers], tuple(reversed(ranges))


def _check_counts(counts: tuple[int, ...], num_layers: int, num_stages: int) -> None:
    if len(counts) != num_stages:
        raise ConfigError(
            f"partition {list(counts)} names {len(counts)} stages, but there are {num_stages}; "
            "give one number of layers for each stage."
        )
    if min(counts) < 1:
        raise ConfigError(f"partition {list(counts)} leaves a stage without layers; give each one.")
    if sum(counts) != num_layers:
        raise ConfigError(
            f"partition {list(counts)} has {sum(counts)} layers, but the model has {num_layers}; "
            f"give layer counts that sum to {num_layers}."
        )


def _check_memory(
    ranges: tuple[StageRange, ...], size: list[int], memory_limits: Sequence[int] | None
) -> None:
    for stage, limit in enumerate(memory_limits or ()):
        first, last = ranges[stage]
        needed = size[last] - size[first]
        if needed > limit:
            raise CapacityError(
                f"Stage {stage} with layers {first} to {last - 1} needs {needed:,} bytes, but has "
                f"room for {limit:,}; give it fewer layers, or let partition be auto."
            )


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
