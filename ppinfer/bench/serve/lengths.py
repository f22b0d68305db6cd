"""How long prompts and answers are: a figure, a range, or a lognormal distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ppinfer.errors import ConfigError

_LARGEST = 10**7


@dataclass(frozen=True)
class Lengths:
    """A distribution of whole numbers of tokens from ``low`` to ``high``, ends included.

    Uniform, or lognormal where ``median`` and ``sigma`` (of the logarithm) are given.
    """

    low: int
    high: int
    median: float | None = None
    sigma: float = 0.0

    def draw(self, source: random.Random) -> int:
        if self.median is None:
            return source.randint(self.low, self.high)
        # Past the ends lies what is cut off anyway, and exp() overflows.
        log = min(source.normalvariate(math.log(self.median), self.sigma), math.log(_LARGEST))
        return min(max(round(math.exp(log)), self.low), self.high)

    def __str__(self) -> str:
        if self.median is not None:
            return f"lognormal about {self.median:g}"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,}–{self.high:,}"


def parse_lengths(text: str, what: str) -> Lengths:
    """``"128"``, ``"16-700"`` or ``"lognormal:MEDIAN:SIGMA"`` with ``:MAX`` if wanted.

    Raises:
        ConfigError: anything else.
    """
    text = text.strip()
    try:
        if text.startswith("lognormal:"):
            median, sigma, *rest = text.split(":")[1:]
            (largest,) = rest or (str(_LARGEST),)
            found = Lengths(1, _count(largest), float(median), float(sigma))
            is_sound = 1 <= float(median) <= found.high and 0 <= found.sigma < math.inf
        else:
            low, dash, high = text.partition("-")
            found = Lengths(_count(low), _count(high if dash else low))
            is_sound = found.low <= found.high
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ConfigError(
            f"{what} must be a number of tokens such as 128, a range such as 16-700, or "
            f"lognormal:MEDIAN:SIGMA[:MAX] such as lognormal:256:0.8, not {text!r}."
        )
    return found


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _LARGEST):
        raise ValueError(text)
    return int(text)
