"""Figures out of repeated runs. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of several runs, and the range they took."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of ``values`` to ``base``, turn by turn, so that what drifts between turns cancels.

    Turns that only one of them has are left out.
    """
    return [value / other for value, other in zip(values, base, strict=False)]


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line of least squares."""
    slope, intercept = statistics.linear_regression(xs, ys)
    return intercept, slope
