"""Medians, percentiles and ratios taken turn by turn."""

from __future__ import annotations

import pytest

from ppinfer.bench.records import Cell, Run, compare
from ppinfer.bench.stats import Spread, fit_line, paired_ratios
from ppinfer.percentile import percentile


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0, 2.0]) == Spread(3.0, 2.0, 4.0)


def test_ratios_cancel_what_drifts_between_turns() -> None:
    base = [100.0, 50.0, 200.0]
    ratios = paired_ratios([2 * rate for rate in base], base)
    assert ratios == [2.0, 2.0, 2.0]
    assert paired_ratios([1.0, 2.0], [4.0]) == [0.25]


def test_percentiles() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0], 0.0) == 1.0


def test_line() -> None:
    assert fit_line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx((1.0, 2.0))


def run(seconds: float, prefill: float = 1.0, decoded: int = 60) -> Run:
    return Run(seconds, prefill, 0.5, decoded, 0.01, 0.02, [10, 20], [0.9, 0.8], [5, 5])


def cell(stages: int, seconds: list[float], status: str = "ok") -> Cell:
    return Cell(
        "demo", "bf16", "1x128x64", f"row {stages}", stages, None, 64, 128, status,
        runs=[run(s) for s in seconds],
    )  # fmt: skip


def test_cells_are_compared_with_hugging_face() -> None:
    cells = [cell(0, [4.0, 8.0, 2.0]), cell(2, [2.0, 4.0, 2.0]), cell(4, [], "oom")]
    compare(cells)
    assert cells[0].ratio is None
    assert cells[1].ratios == [2.0, 2.0, 1.0]
    assert cells[1].ratio == Spread(2.0, 1.0, 2.0)
    assert cells[2].ratio is None
    failed = [cell(0, [], "failed"), cell(2, [2.0])]
    compare(failed)
    assert failed[1].ratio is None


def test_figures_of_a_cell() -> None:
    made = cell(2, [4.0, 2.0, 3.0])
    assert made.rates == [16.0, 32.0, pytest.approx(64 / 3)]
    assert made.prefill_rate.median == 128.0
    assert made.decode_rate.median == 30.0
    assert made.share_of(64.0) == pytest.approx(1 / 3)
    assert made.share_of(None) is None
    assert made.stage_median("peak_bytes") == [10, 20]
    assert made.median("token_p99") == 0.02
