"""The published figures, and how well the models of the two systems tell them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ppinfer.planner.published.calibrate import (
    FITTED_COLUMNS,
    SYSTEMS,
    Calibrated,
    Judged,
    Parameters,
    fit,
    judge,
)
from ppinfer.planner.published.eager import EagerCost
from ppinfer.planner.published.figures import GIB, HUGGING_FACE, PIPELINE, Cell, load_figures
from ppinfer.planner.published.fit import from_line, least_absolute, to_line
from ppinfer.planner.published.ours import CHANGES, compare
from ppinfer.planner.published.systems import hugging_face_seconds, pipeline_seconds
from ppinfer.planner.work import StepWork

FIGURES = load_figures()
SYSTEM = {system.name: system for system in SYSTEMS}


@pytest.fixture(scope="module")
def judged() -> dict[str, Judged]:
    return {name: judge(system, FIGURES) for name, system in SYSTEM.items()}


def cell(column: str, prompt: int, model: str = "llama-7b", dtype: str = "fp16") -> Cell:
    (found,) = (
        cell
        for cell in FIGURES.cells
        if (cell.column, cell.prompt, cell.model.name, cell.dtype) == (column, prompt, model, dtype)
    )
    return found


# ---------------------------------------------------------------- the figures


def test_every_cell_is_there() -> None:
    assert len(FIGURES.cells) == 2 * (6 + 4 + 4)
    missing = {
        name: sum(cell.figures[name] is None for cell in FIGURES.cells)
        for name in (PIPELINE, HUGGING_FACE)
    }
    assert missing == {PIPELINE: 1, HUGGING_FACE: 9}
    assert cell("32(16)", 512).figures[PIPELINE] == 312.82
    assert cell("16(4)", 1024, "llama-13b").figures == {PIPELINE: 64.30, HUGGING_FACE: None}
    assert FIGURES.device.bandwidth == 600e9


def test_shapes_are_those_of_llama() -> None:
    assert cell("2(1)", 512).model.total_parameters == 6_738_415_616
    assert cell("2(1)", 512, "llama-13b").model.total_parameters == 13_015_864_320


# ---------------------------------------------------------------- how well they are told


@pytest.mark.parametrize(
    ("name", "held_out", "worst"), [(PIPELINE, 0.02, 0.04), (HUGGING_FACE, 0.017, 0.04)]
)
def test_held_out_figures_are_predicted(
    judged: dict[str, Judged], name: str, held_out: float, worst: float
) -> None:
    found = judged[name]
    assert found.held_out.mean < held_out
    assert abs(found.held_out.worst) < worst
    assert found.fitted.mean < 0.02
    assert found.fitted.cells + found.held_out.cells == {PIPELINE: 27, HUGGING_FACE: 19}[name]


def test_each_column_is_predicted_from_the_others(judged: dict[str, Judged]) -> None:
    assert {name: set(found.without) for name, found in judged.items()} == {
        PIPELINE: {"2(1)", "4(2)", "8(4)", "16(8)", "32(8)", "32(16)", "16(4)"},
        HUGGING_FACE: {"2(1)", "4(2)", "8(4)", "16(8)"},
    }
    for found in judged.values():
        assert max(errors.mean for errors in found.without.values()) < 0.07


def test_out_of_memory_or_not_is_told_right_everywhere(judged: dict[str, Judged]) -> None:
    for name, found in judged.items():
        assert found.verdicts == len(FIGURES.cells)
        for cell in FIGURES.cells:
            assert found.calibrated.fits(cell) == (cell.figures[name] is not None), cell


def test_six_sensible_parameters_a_system(judged: dict[str, Judged]) -> None:
    for found in judged.values():
        parameters = found.calibrated.parameters
        assert len(found.calibrated.system.fitted) <= 6
        for name in ("bandwidth", "kv_bandwidth", "peak_fp16", "peak_fp32"):
            assert 0.2 < getattr(parameters, name) < 1
        assert 0 < parameters.layer_seconds < 2e-3
        assert 0 <= parameters.start_seconds < 3
        assert FIGURES.usable_gib <= parameters.usable_gib < FIGURES.usable_gib + 1


def test_what_is_not_fitted_stays(judged: dict[str, Judged]) -> None:
    assert judged[PIPELINE].calibrated.parameters.usable_gib == FIGURES.usable_gib
    assert judged[HUGGING_FACE].calibrated.parameters.start_seconds == 0


def test_held_out_figures_have_no_part_in_the_fit(judged: dict[str, Judged]) -> None:
    """And the same figures give the same parameters."""
    disturbed = replace(
        FIGURES,
        cells=tuple(
            cell
            if cell.column in FITTED_COLUMNS
            else replace(cell, figures=dict.fromkeys(cell.figures, 1.0))
            for cell in FIGURES.cells
        ),
    )
    system = SYSTEM[HUGGING_FACE]
    cells = [cell for cell in disturbed.cells if cell.column in FITTED_COLUMNS]
    assert fit(system, disturbed, cells) == judged[HUGGING_FACE].calibrated.parameters


# ---------------------------------------------------------------- the models


def stage(cell: Cell, layers: tuple[int, int], parameters: Parameters) -> EagerCost:
    efficiency = parameters.efficiency(cell.dtype)
    return EagerCost(FIGURES.device, cell.model, layers, cell.dtype, efficiency)


def test_the_ring_step_by_step() -> None:
    """The closed form is the sum over every tick of the slower stage's step."""
    few = replace(cell("32(8)", 512), new=9)
    parameters = Parameters(usable_gib=20)
    stages = [stage(few, (0, 20), parameters), stage(few, (20, 32), parameters)]
    prefill, steps = StepWork.prefill(8, 512), 2 * few.new
    total = 0.0
    for tick in range(steps + 2):
        ends = [0.0, 0.0]
        for index in range(2):
            token = (tick - index) // 2
            if tick < index or token > few.new:
                continue
            if index == 0 and token:
                ends[0] += stages[0].head_seconds(8 * 512 if token == 1 else 8)
            if token < few.new:
                work = StepWork.decode(8, 512 + token) if token else prefill
                ends[index] += stages[index].layers_seconds(work)
                ends[index] += FIGURES.link.seconds(work.tokens * 4096 * 2)
        total += max(ends)
    assert pipeline_seconds(few, stages, FIGURES.link) == pytest.approx(2 * total, rel=1e-9)


def test_one_new_token_is_the_prefill_and_the_head() -> None:
    one = replace(cell("2(1)", 512), new=1)
    whole = stage(one, (0, 32), Parameters(usable_gib=20))
    expected = whole.layers_seconds(StepWork.prefill(2, 512)) + whole.head_seconds(1024)
    assert hugging_face_seconds(one, whole) == pytest.approx(expected)
    halves = [stage(one, layers, Parameters(usable_gib=20)) for layers in ((0, 16), (16, 32))]
    prefill = halves[0].layers_seconds(StepWork.prefill(1, 512))
    assert pipeline_seconds(one, halves, FIGURES.link) > 3 * prefill


def test_copies_of_the_cache_are_what_decoding_pays_for() -> None:
    copied = stage(cell("8(4)", 1024), (0, 16), Parameters(usable_gib=20))
    in_place = replace(copied, concatenates=False)
    work = StepWork.decode(4, 1024)
    kv = 16 * 4 * 1024 * copied.model.kv_bytes(1, "fp16") / (600e9 * 0.6)
    assert copied.layers_seconds(work) - in_place.layers_seconds(work) == pytest.approx(2 * kv)
    prefill = StepWork.prefill(4, 1024)
    assert copied.layers_seconds(prefill) == in_place.layers_seconds(prefill)


def test_the_peak_is_that_of_a_phase_and_not_their_sum() -> None:
    peak = SYSTEM[PIPELINE].peak(cell("32(16)", 1024))
    assert peak.phase == "decoding"
    weights = 2 * (16 * cell("2(1)", 512).model.layer_parameters + 2 * 32000 * 4096 + 4096)
    caches = 3 * 16 * (1024 + 127) * cell("2(1)", 512).model.kv_bytes(16, "fp16")
    assert weights + caches < peak.decode < weights + caches + 0.5 * GIB
    short = replace(cell("32(16)", 1024), new=1, micro_batch=1)
    assert SYSTEM[HUGGING_FACE].peak(short).phase != "decoding"


# ---------------------------------------------------------------- ppinfer in their place


def test_changes_lead_from_the_pipeline_to_ppinfer(judged: dict[str, Judged]) -> None:
    pipeline = judged[PIPELINE].calibrated
    ours = compare(pipeline, cell("16(8)", 1024))
    assert len(ours.rates) == len(CHANGES)
    assert ours.rates[0] == pytest.approx(pipeline.rate(cell("16(8)", 1024)))
    assert math.prod(1 + gain for gain in ours.gains) == pytest.approx(
        ours.rates[-1] / ours.rates[0]
    )
    assert ours.rate is not None
    assert ours.rates[0] < ours.rate < ours.rates[-1]
    assert ours.at_once == 16
    assert sum(ours.layers) == 32


def test_without_memory_there_is_no_rate(judged: dict[str, Judged]) -> None:
    found = judged[PIPELINE].calibrated
    poor = Calibrated(found.system, FIGURES, replace(found.parameters, usable_gib=7.0))
    ours = compare(poor, cell("2(1)", 1024))
    assert ours.rate is None
    assert ours.at_once == 0


# ---------------------------------------------------------------- the fit


def test_least_absolute_differences_ignore_an_outlier() -> None:
    points = [(x, 3.0 + 2.0 * x) for x in range(9)]
    points[4] = (4, 50.0)
    found = least_absolute(lambda at: [at[0] + at[1] * x - y for x, y in points], [0.0, 0.0])
    assert found == pytest.approx([3.0, 2.0], abs=0.01)


def test_a_fit_that_nothing_depends_on_stays_where_it_is() -> None:
    assert least_absolute(lambda at: [1.0, -1.0], [5.0]) == [5.0]


def test_places_on_the_line_are_within_bounds() -> None:
    assert from_line(to_line(0.3, 5.0), 5.0) == pytest.approx(0.3)
    for far in (-1e9, 1e9):
        assert 0 < from_line(far, 5.0) <= 5.0


def test_a_step_does_not_go_far() -> None:
    """Where the slope is all but flat, the least squares lie far beyond what makes sense."""
    tried = []

    def residuals(at: Sequence[float]) -> list[float]:
        tried.append(at[0])
        return [1.0 - 1e-3 * at[0]]

    least_absolute(residuals, [0.0])
    assert tried[2] == pytest.approx(2.0)
