"""One meaning of a percentile, for what was measured and what was modelled."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # up to a whole number
    return ordered[max(int(rank), 1) - 1]
