"""What users were promised: limits that a request meets or does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ppinfer.errors import ConfigError

MEASURES = {
    "ttft": "time to first token",
    "itl": "longest gap between tokens",
    "tpot": "mean time per output token",
    "e2e": "whole answer",
}
_LIMIT = re.compile(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)")
_SECONDS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Objective:
    """Seconds by measure (see ``MEASURES``), none of which a request may exceed."""

    limits: Mapping[str, float]

    def is_met(self, measured: Mapping[str, float | None]) -> bool:
        """By a request that was answered; what it has no figure of, it cannot exceed."""
        return all((measured[name] or 0.0) <= limit for name, limit in self.limits.items())

    def __str__(self) -> str:
        return ", ".join(f"{MEASURES[k]} ≤ {v * 1e3:g} ms" for k, v in self.limits.items())


def parse_objective(text: str) -> Objective:
    """``"ttft=500ms,itl=50ms,e2e=10s"``. Raises ``ConfigError`` for anything else."""
    limits = {}
    for item in text.replace(" ", "").split(","):
        found = _LIMIT.fullmatch(item)
        if found is None or found[1] not in MEASURES:
            raise ConfigError(
                f"slo must be limits such as ttft=500ms,itl=50ms, out of {', '.join(MEASURES)}, "
                f"not {item!r}."
            )
        limits[found[1]] = float(found[2]) * _SECONDS[found[3]]
    return Objective(limits)
