"""Least absolute differences, by Gauss-Newton steps on weighted squares. No dependencies.

A difference counts as ``sqrt(d^2 + SMOOTH^2)``: in proportion where it is large, so that a figure
that something else disturbed does not pull all others along, and squared near zero, so that there
is a slope. Steps are damped as by Levenberg and Marquardt, and taken only if they are an
improvement: so the same input gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SMOOTH = 0.01
_STEPS = 100
_ENOUGH = 1e-9
_SHIFT = 1e-5
_FARTHEST = 2.0

Residuals = Callable[[Sequence[float]], list[float]]


def least_absolute(residuals: Residuals, start: Sequence[float]) -> list[float]:
    """Where the absolute residuals are least, near ``start``; for bounds see ``to_line``."""
    at, left = list(start), residuals(start)
    loss, damping = _loss(left), 1e-3
    for _ in range(_STEPS):
        slopes = _slopes(residuals, at, left)
        while damping < 1e9:
            step = _step(slopes, left, damping)
            part = min(1.0, _FARTHEST / (max(map(abs, step)) or 1.0))
            further = [x + part * d for x, d in zip(at, step, strict=True)]
            found = residuals(further)
            if (better := _loss(found)) < loss:
                break
            damping *= 4
        else:
            return at
        gain, at, left, loss = loss - better, further, found, better
        damping = max(damping / 4, 1e-9)
        if gain < _ENOUGH:
            return at
    return at


def to_line(value: float, top: float) -> float:
    """A value between 0 and ``top`` as any number, so that no step leaves the bounds."""
    return math.log(value / (top - value))


def from_line(place: float, top: float) -> float:
    return top / (1 + math.exp(-min(max(place, -60.0), 60.0)))


def _loss(residuals: Sequence[float]) -> float:
    return sum(math.hypot(value, SMOOTH) for value in residuals)


def _slopes(residuals: Residuals, at: Sequence[float], here: Sequence[float]) -> list[list[float]]:
    """For each parameter, how fast every residual grows with it."""
    columns = []
    for index in range(len(at)):
        shifted = list(at)
        shifted[index] += _SHIFT
        there = residuals(shifted)
        columns.append([(b - a) / _SHIFT for a, b in zip(here, there, strict=True)])
    return columns


def _step(slopes: list[list[float]], left: Sequence[float], damping: float) -> list[float]:
    weights = [1 / math.hypot(value, SMOOTH) for value in left]
    matrix = [
        [sum(w * a * b for w, a, b in zip(weights, one, other, strict=True)) for other in slopes]
        for one in slopes
    ]
    right = [-sum(w * a * r for w, a, r in zip(weights, one, left, strict=True)) for one in slopes]
    for index in range(len(matrix)):
        matrix[index][index] += damping * (matrix[index][index] + 1e-12)
    return _solve(matrix, right)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination; the matrix is symmetric and positive definite, so no pivots."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            for index in range(column, size + 1):
                rows[row][index] -= factor * rows[column][index]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][index] * found[index] for index in range(row + 1, size))
        found[row] = (rows[row][size] - known) / rows[row][row]
    return found
