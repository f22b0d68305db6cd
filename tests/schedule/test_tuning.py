"""What is chosen from measurements, on tables made by hand."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.config import EngineConfig
from ppinfer.messages import StepCosts
from ppinfer.schedule.pace import (
    CORE_WAIT_SECONDS,
    HOP_SECONDS,
    Curve,
    Measured,
    PipelinePace,
    StagePace,
    least,
)
from ppinfer.schedule.partition import LayerCosts
from ppinfer.schedule.tuning import PREFILL_CHUNKS, Tuning, tune, untuned

ROWS = (1, 2, 4, 8, 16, 32, 64)


def sizes(num_layers: int = 30) -> LayerCosts:
    return LayerCosts(
        layers=(1.0,) * num_layers, embed=0.0, head=0.0,
        layer_bytes=(10,) * num_layers, embed_bytes=0, head_bytes=10,
    )  # fmt: skip


def costs(
    threads: int = 1,
    weights: float = 0.0,
    row: float = 0.0,
    *,
    head_layers: float = 0.0,
    speed: float = 1.0,
    prefill: float | None = None,
) -> StepCosts:
    """A layer takes ``weights`` to be read, or ``row`` for each row if that is longer."""

    def layer(rows: int) -> float:
        return max(weights, rows * row) / speed

    each = row if prefill is None else prefill
    return StepCosts(
        threads=threads,
        decode=tuple((rows, layer(rows)) for rows in ROWS),
        prefill=tuple((rows, max(weights, rows * each) / speed) for rows in (128, 512, 1024)),
        head=tuple((rows, head_layers * layer(rows)) for rows in ROWS),
        embed=((1, 0.0),),
        prepare=((1, 0.0),),
    )


def shared(one: StepCosts, all_cores: StepCosts, stages: int = 2) -> Measured:
    """Stages of one host with so many cores as ``all_cores`` used."""
    return Measured((one,) * stages, (all_cores,) * stages, all_cores.threads)


WEIGHT_BOUND = shared(costs(1, weights=4e-3, row=1e-6), costs(2, weights=2e-3, row=1e-6))
COMPUTE_BOUND = shared(
    costs(1, weights=1e-3, row=1e-3), costs(2, weights=1e-3, row=1e-3, speed=1.5)
)


def layers_of(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [last - first for first, last in ranges]


# ---------------------------------------------------------------- curves and pace


def test_a_curve_is_linear_between_its_points_and_proportional_after_the_last() -> None:
    curve = Curve(((2, 1.0), (4, 2.0), (8, 2.0)))
    assert [curve.at(rows) for rows in (1, 2, 3, 4, 6, 8)] == [1.0, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert curve.at(16) == 4.0


def test_a_disturbed_point_is_lowered_to_what_the_others_allow() -> None:
    assert Curve(((1, 9.0), (2, 1.0), (4, 5.0), (8, 2.0))).points == (
        (1, 1.0), (2, 1.0), (4, 2.0), (8, 2.0),
    )  # fmt: skip
    assert Curve(((1, 1.0), (4, 3.0), (16, 99.0))).points[-1] == (16, 12.0)


def test_of_several_tables_the_least_times_are_taken() -> None:
    one, other = costs(weights=2.0), costs(weights=1.0)
    other = msgspec.structs.replace(other, decode=((2, 3.0), (999, 7.0)))
    joined = least([one, other])
    assert joined.decode == (*((rows, 2.0) for rows in ROWS), (999, 7.0))
    assert joined.prefill == other.prefill


def test_of_slopes_the_middle_is_taken_since_a_disturbed_one_may_be_too_small() -> None:
    tables = [
        msgspec.structs.replace(costs(row=1.0), decode_context=slope, prefill_context=3 * slope)
        for slope in (0.0, 2.0, 9.0)
    ]
    joined = least(tables)
    assert (joined.decode_context, joined.prefill_context) == (2.0, 6.0)


def test_one_micro_batch_visits_the_stages_in_turn() -> None:
    pace = PipelinePace([StagePace(costs(row=1e-3, head_layers=2))] * 2, ((0, 3), (3, 4)))
    around = 8 * (3 + 1 + 2) * 1e-3 + 2 * HOP_SECONDS
    assert pace.round_seconds(8, 1) == pytest.approx(around)
    # Two micro-batches of 4: both stages have 3 layers' work for each.
    assert pace.round_seconds(8, 2) == pytest.approx(4 * 6e-3 + 2 * HOP_SECONDS)
    assert pace.round_seconds(8, 4) == pytest.approx(4 * 2 * 3e-3)


def test_four_stages_on_two_cores_share_them() -> None:
    stages = [StagePace(costs(1, row=1e-3))] * 4
    ranges = ((0, 1), (1, 2), (2, 3), (3, 4))
    assert PipelinePace(stages, ranges, 2).round_seconds(8, 8) == pytest.approx(8 * 4 / 2 * 1e-3)
    assert PipelinePace(stages, ranges).round_seconds(8, 8) == pytest.approx(8 * 1e-3)


def test_a_stage_waits_for_a_core_where_more_stages_than_cores_compute_at_once() -> None:
    stages, ranges = [StagePace(costs(1, row=1e-3))] * 4, ((0, 1), (1, 2), (2, 3), (3, 4))
    shared_cores, own_cores = PipelinePace(stages, ranges, 2), PipelinePace(stages, ranges, 4)
    waits = 4 * CORE_WAIT_SECONDS
    for seconds in (
        lambda pace, m: pace.round_seconds(4, m),
        lambda pace, m: pace.prefill_seconds(128, 128, m),
    ):
        assert seconds(shared_cores, 2) == pytest.approx(seconds(own_cores, 2) + waits)
        assert seconds(shared_cores, 1) == pytest.approx(seconds(own_cores, 1)), "one at a time"


# ---------------------------------------------------------------- micro-batches


def test_a_weight_bound_batch_stays_whole_and_uses_every_core() -> None:
    _, tuning = tune(WEIGHT_BOUND, sizes(), EngineConfig(pp_size=2, micro_batch_size=8))
    assert tuning.micro_batches == (1,) * 16
    assert tuning.num_slots == 1
    assert tuning.threads_for(1) == 2


def test_a_compute_bound_batch_fills_the_stages() -> None:
    _, tuning = tune(COMPUTE_BOUND, sizes(), EngineConfig(pp_size=2, micro_batch_size=8))
    assert tuning.micro_batches[0] == 1  # one sequence cannot be divided
    assert set(tuning.micro_batches[3::2]) == {2}
    assert [tuning.threads_for(m) for m in (1, 2, 3)] == [2, 1, 1]


def test_stages_with_devices_of_their_own_share_no_cores() -> None:
    alone = Measured((costs(4, row=1e-3),) * 2)
    _, tuning = tune(alone, sizes(), EngineConfig(pp_size=2, micro_batch_size=8))
    assert tuning.micro_batches[-1] == 2
    assert [tuning.threads_for(m) for m in (1, 2, 9)] == [0, 0, 0]


def test_more_threads_are_not_used_where_they_are_no_gain() -> None:
    slower = shared(costs(1, weights=1e-3), costs(2, weights=2e-3))
    _, tuning = tune(slower, sizes(), EngineConfig(pp_size=2))
    assert tuning.threads_for(1) == 1


def test_a_tie_goes_to_fewer_micro_batches() -> None:
    same = shared(costs(1, row=1e-3), costs(2, row=1e-3, speed=2.0))
    _, tuning = tune(same, sizes(), EngineConfig(pp_size=2, micro_batch_size=8))
    assert set(tuning.micro_batches) == {1}


def test_the_number_grows_where_arithmetic_begins_to_weigh_more() -> None:
    both = shared(costs(1, weights=8e-3, row=1e-3), costs(2, weights=5e-3, row=1e-3, speed=1.1))
    config = EngineConfig(pp_size=2, micro_batch_size=32)
    _, tuning = tune(both, sizes(), config)
    assert tuning.micro_batches_for(4) == 1
    assert tuning.micro_batches_for(64) == 2
    assert tuning.micro_batches_for(1000) == 2  # more than fit are as many as fit
    assert "1 below" in " ".join(tuning.choices)


def test_a_number_that_was_asked_for_is_kept() -> None:
    for asked in (1, 2, 3, 7):
        config = EngineConfig(pp_size=2, num_micro_batches=asked, micro_batch_size=2)
        for measured in (WEIGHT_BOUND, COMPUTE_BOUND):
            _, tuning = tune(measured, sizes(), config)
            assert tuning.micro_batches == tuple(min(n, asked) for n in range(1, 2 * asked + 1))
            assert not any("micro-batch" in words for words in tuning.choices)


def test_one_stage_has_one_micro_batch() -> None:
    _, tuning = tune(Measured((costs(2, row=1e-3),), (), 2), sizes(), EngineConfig())
    assert set(tuning.micro_batches) == {1}
    assert tuning.threads_for(1) == 2


seconds = st.floats(0, 10, allow_nan=False)
points = st.dictionaries(st.integers(1, 600), seconds, min_size=1, max_size=6).map(
    lambda found: tuple(sorted(found.items()))
)
tables = st.builds(
    StepCosts, threads=st.just(1), decode=points, prefill=points, head=points, embed=points,
    prepare=points,
)  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[Measured, EngineConfig, int]:
    num_stages = draw(st.integers(1, 4))
    stages = st.tuples(*[tables] * num_stages)
    in_turn = draw(st.one_of(st.just(()), stages))
    cores = draw(st.integers(1, 4)) if in_turn else 0
    config = EngineConfig(
        pp_size=num_stages,
        micro_batch_size=draw(st.integers(1, 9)),
        num_micro_batches=draw(st.one_of(st.none(), st.integers(1, 9))),
        max_prefill_tokens=draw(st.sampled_from([None, 7, 512])),
        partition=draw(st.sampled_from(["auto", "even"])),
    )
    return Measured(draw(stages), in_turn, cores), config, draw(st.integers(num_stages, 8))


@given(cases())
def test_any_measurements_give_a_whole_answer_and_the_same_one(
    case: tuple[Measured, EngineConfig, int],
) -> None:
    measured, config, num_layers = case
    ranges, tuning = tune(measured, sizes(num_layers), config)
    assert (ranges, tuning) == tune(measured, sizes(num_layers), config)
    assert sum(layers_of(ranges)) == num_layers
    assert len(tuning.micro_batches) == config.max_sequences
    most = config.num_micro_batches or 2 * config.pp_size
    for n in range(1, config.max_sequences + 1):
        m = tuning.micro_batches_for(n)
        assert 1 <= m <= min(n, most)
        assert tuning.threads_for(m) >= 0
    assert tuning.max_prefill_tokens in (config.max_prefill_tokens, *PREFILL_CHUNKS)
    assert all(words and "\n" not in words for words in tuning.choices)


# ---------------------------------------------------------------- cut


def test_the_stage_with_the_head_gets_fewer_layers() -> None:
    heavy = shared(costs(1, row=1e-3, head_layers=8), costs(2, row=1e-3, speed=1.5, head_layers=8))
    ranges, tuning = tune(heavy, sizes(), EngineConfig(pp_size=2))
    assert layers_of(ranges) == [19, 11]
    assert tuning.choices[0].startswith("layers 19+11 (one takes 8 ms, the head 64 ms at 8 ")


def test_a_slow_device_gets_fewer_layers() -> None:
    uneven = Measured((costs(row=1e-3), costs(row=1e-3, speed=2.0)))
    assert layers_of(tune(uneven, sizes(), EngineConfig(pp_size=2))[0]) == [10, 20]


def test_the_cut_heeds_memory_and_the_users_own() -> None:
    config = EngineConfig(pp_size=2)
    assert layers_of(tune(WEIGHT_BOUND, sizes(), config, [100, 1000])[0]) == [10, 20]
    config = EngineConfig(pp_size=2, partition=(29, 1))
    ranges, tuning = tune(WEIGHT_BOUND, sizes(), config)
    assert layers_of(ranges) == [29, 1]
    assert not any(words.startswith("layers") for words in tuning.choices)


# ---------------------------------------------------------------- prefill


def test_chunks_are_small_where_stages_work_side_by_side_and_rows_cost_alike() -> None:
    _, tuning = tune(COMPUTE_BOUND, sizes(), EngineConfig(pp_size=2))
    assert tuning.max_prefill_tokens == 128


def test_chunks_are_as_large_as_any_measured_where_each_costs_the_same() -> None:
    heavy = costs(weights=0.1, row=1e-3, prefill=1e-5)
    _, tuning = tune(Measured((heavy,)), sizes(), EngineConfig())
    assert tuning.max_prefill_tokens == 1024


def test_the_chunk_that_was_asked_for_is_kept() -> None:
    _, tuning = tune(COMPUTE_BOUND, sizes(), EngineConfig(pp_size=2, max_prefill_tokens=77))
    assert tuning.max_prefill_tokens == 77
    assert not any("prefill" in words for words in tuning.choices)


# ---------------------------------------------------------------- without measurements, and words


def test_without_measurements_each_stage_has_a_micro_batch() -> None:
    tuning = untuned(EngineConfig(pp_size=3, micro_batch_size=2), threads=(2, 1))
    assert tuning == Tuning(
        micro_batches=(1, 2, 3, 3, 3, 3), threads=(2, 1), max_prefill_tokens=512, turns=3
    )
    asked = untuned(EngineConfig(num_micro_batches=2, micro_batch_size=1, max_prefill_tokens=9))
    assert (asked.micro_batches, asked.max_prefill_tokens) == ((1, 2), 9)
    assert asked.threads_for(1) == 0


def test_the_choice_is_put_in_words_with_what_it_was_chosen_over() -> None:
    _, tuning = tune(WEIGHT_BOUND, sizes(), EngineConfig(pp_size=2, micro_batch_size=8))
    assert tuning.choices[1] == (
        "1 micro-batch of up to 16, stages in turn on 2 cores: 60 ms a token predicted "
        "(against 120 ms with 2 on 1 core a stage)"
    )
    assert tuning.choices[2].startswith("prefill of ")
