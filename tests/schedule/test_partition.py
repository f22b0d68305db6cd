from __future__ import annotations

import time
from fractions import Fraction
from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppinfer.errors import CapacityError, ConfigError
from ppinfer.schedule.partition import LayerCosts, StageRange, partition_layers


def make_costs(layers, embed=0.0, head=0.0, layer_bytes=None, embed_bytes=0, head_bytes=0):
    return LayerCosts(
        layers=tuple(layers),
        embed=embed,
        head=head,
        layer_bytes=tuple(layer_bytes or [1] * len(layers)),
        embed_bytes=embed_bytes,
        head_bytes=head_bytes,
    )


def counts(ranges: tuple[StageRange, ...]) -> list[int]:
    return [last - first for first, last in ranges]


def totals(ranges, first, each, last, zero):
    values = [sum(each[a:b], zero) for a, b in ranges]
    values[0] += first
    values[-1] += last
    return values


def stage_costs(costs: LayerCosts, ranges: tuple[StageRange, ...]) -> list[Fraction]:
    layers = [Fraction(cost) for cost in costs.layers]
    return totals(ranges, Fraction(costs.embed), layers, Fraction(costs.head), Fraction(0))


def stage_bytes(costs: LayerCosts, ranges: tuple[StageRange, ...]) -> list[int]:
    return totals(ranges, costs.embed_bytes, costs.layer_bytes, costs.head_bytes, 0)


def brute_force(costs, num_stages, limits):
    """The documented order, over every split there is."""
    num_layers = len(costs.layers)
    best = None
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        ranges = tuple(pairwise((0, *cuts, num_layers)))
        sizes = stage_bytes(costs, ranges)
        if limits and any(size > limit for size, limit in zip(sizes, limits, strict=True)):
            continue
        values = stage_costs(costs, ranges)
        key = (max(values), sum(v * v for v in values), counts(ranges)[::-1])
        if best is None or key < best[0]:
            best = (key, ranges)
    return best and best[1]


@st.composite
def problems(draw):
    num_layers = draw(st.integers(1, 8))
    cost = st.one_of(
        st.sampled_from([0.0, 0.1, 0.2, 1.0, 3.0]), st.floats(0, 10, allow_subnormal=False)
    )
    size = st.integers(0, 9)
    costs = make_costs(
        [draw(cost) for _ in range(num_layers)],
        draw(cost),
        draw(cost),
        [draw(size) for _ in range(num_layers)],
        draw(size),
        draw(size),
    )
    num_stages = draw(st.integers(1, num_layers))
    limit = st.integers(0, 30)
    limits = draw(st.none() | st.lists(limit, min_size=num_stages, max_size=num_stages))
    return costs, num_stages, limits


@given(problems())
@settings(deadline=None, max_examples=300)
def test_auto_is_the_best_of_all_splits(problem):
    costs, num_stages, limits = problem
    best = brute_force(costs, num_stages, limits)
    if best is None:
        with pytest.raises(CapacityError):
            partition_layers(costs, num_stages, "auto", limits)
    else:
        assert partition_layers(costs, num_stages, "auto", limits) == best


@pytest.mark.parametrize("how", ["auto", "even"])
@pytest.mark.parametrize("num_stages", range(1, 9))
def test_no_layer_is_lost_for_any_count_and_size(how, num_stages):
    for num_layers in range(num_stages, 41):
        ranges = partition_layers(make_costs([0.1] * num_layers), num_stages, how)
        assert [layer for a, b in ranges for layer in range(a, b)] == list(range(num_layers))
        assert min(counts(ranges)) >= 1
        assert max(counts(ranges)) - min(counts(ranges)) <= 1
        assert len(ranges) == num_stages


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "expected"),
    [(5, 2, [3, 2]), (61, 4, [16, 15, 15, 15]), (9, 8, [2, 1, 1, 1, 1, 1, 1, 1])],
)
def test_splits_that_lost_layers_elsewhere(num_layers, num_stages, expected):
    costs = make_costs([1.0] * num_layers)
    assert counts(partition_layers(costs, num_stages, "even")) == expected
    assert counts(partition_layers(costs, num_stages, "auto")) == expected


def test_equal_layers_in_floats_split_evenly():
    # In floats the tenths sum up differently from either end; no rounding may unbalance the split.
    for num_stages in (2, 3, 5, 6, 10):
        ranges = partition_layers(make_costs([0.1] * 30), num_stages)
        assert counts(ranges) == [30 // num_stages] * num_stages


def test_a_heavy_head_takes_layers_off_the_last_stage():
    costs = make_costs([1.0] * 30, embed=0.1, head=5.0)
    assert counts(partition_layers(costs, 2)) == [17, 13]
    assert counts(partition_layers(make_costs([1.0] * 4, head=100.0), 2)) == [3, 1]


def test_the_bottleneck_does_not_excuse_the_other_stages():
    ranges = partition_layers(make_costs([9.0, 1.0, 1.0, 1.0, 1.0]), 3)
    assert counts(ranges) == [1, 2, 2]


def test_memory_limits_move_layers():
    costs = make_costs([1.0] * 10, layer_bytes=[10] * 10, embed_bytes=5, head_bytes=7)
    assert counts(partition_layers(costs, 2, "auto", [35, 1000])) == [3, 7]
    assert counts(partition_layers(costs, 2, "auto", [1000, 27])) == [8, 2]


def test_a_large_layer_goes_where_there_is_room():
    costs = make_costs([1.0] * 6, layer_bytes=[1, 1, 1, 50, 1, 1])
    assert counts(partition_layers(costs, 3, "auto", [9, 9, 60])) == [2, 1, 3]
    assert counts(partition_layers(costs, 3, "auto", [60, 9, 9])) == [4, 1, 1]


def test_no_room_names_the_numbers():
    costs = make_costs([1.0] * 4, layer_bytes=[1000] * 4, embed_bytes=500, head_bytes=200)
    with pytest.raises(CapacityError, match=r"need 4,700 bytes.* 1,500, .* 2 stages .* 100, 9,000"):
        partition_layers(costs, 2, "auto", [100, 9000])
    with pytest.raises(CapacityError, match=r"Stage 1 with layers 2 to 3 needs 2,200 bytes.*2,100"):
        partition_layers(costs, 2, "even", [9000, 2100])
    with pytest.raises(CapacityError, match=r"Stage 0 with layers 0 to 2 needs 3,500 bytes.*3,000"):
        partition_layers(costs, 2, (3, 1), [3000, 3000])


def test_explicit_counts():
    costs = make_costs([1.0] * 30)
    assert partition_layers(costs, 2, (17, 13)) == ((0, 17), (17, 30))
    with pytest.raises(ConfigError, match=r"\[17, 12\] has 29 layers, but the model has 30;"):
        partition_layers(costs, 2, (17, 12))
    with pytest.raises(ConfigError, match="names 2 stages, but there are 3"):
        partition_layers(costs, 3, (17, 13))
    with pytest.raises(ConfigError, match="leaves a stage without layers"):
        partition_layers(costs, 2, (30, 0))


@pytest.mark.parametrize("how", ["auto", "even", (1, 1, 1)])
def test_more_stages_than_layers(how):
    with pytest.raises(ConfigError, match="3 stages are more than the model's 2 layers"):
        partition_layers(make_costs([1.0, 1.0]), 3, how)


def test_large_models_are_quick():
    layers = [1.0 + (7 * i % 13) / 10 for i in range(200)]
    started = time.thread_time()
    ranges = partition_layers(make_costs(layers, embed=0.3, head=4.0), 64, "auto", [5] * 64)
    assert time.thread_time() - started < 2
    assert list(accumulate(counts(ranges)))[-1] == 200


@settings(max_examples=100)
@given(st.data())
def test_stages_of_different_speed_are_cut_as_well_as_any_split(data):
    num_stages = data.draw(st.integers(1, 4), "stages")
    num_layers = data.draw(st.integers(num_stages, 8), "layers")
    cost = st.integers(0, 50)
    each = [
        make_costs(
            [data.draw(cost, "layer")] * num_layers, data.draw(cost, "embed"), data.draw(cost)
        )
        for _ in range(num_stages)
    ]

    def slowest(ranges):
        return max(stage_costs(costs, ranges)[i] for i, costs in enumerate(each))

    splits = [
        tuple(pairwise((0, *cuts, num_layers)))
        for cuts in combinations(range(1, num_layers), num_stages - 1)
    ]
    assert slowest(partition_layers(each, num_stages)) == min(map(slowest, splits))
