"""When requests come: at a rate, by chance, or as soon as another is answered."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ppinfer.bench.cases import parse_counts
from ppinfer.errors import ConfigError


@dataclass(frozen=True)
class Load:
    """One level of load; exactly one of the two is given.

    Attributes:
        rate: requests/s that arrive, whatever the server does; ``inf`` is all at once.
        concurrency: requests in flight at any time.
    """

    rate: float | None = None
    concurrency: int | None = None

    @property
    def name(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at once"
        return "inf" if self.rate == math.inf else f"{self.rate:g}/s"

    @property
    def label(self) -> str:
        """The figure alone, for an axis that names what it is."""
        return self.name.removesuffix(" at once").removesuffix("/s")


@dataclass(frozen=True)
class Extent:
    """Where a level ends: after so many requests or seconds, whichever is first."""

    requests: int | None = None
    seconds: float | None = None

    def check(self, loads: tuple[Load, ...]) -> None:
        """Raises ``ConfigError`` where a level would never end."""
        if self.requests is None and any(load.rate == math.inf for load in loads):
            raise ConfigError("rate inf sends all requests at once: say how many with --requests.")


def parse_loads(rates: str | None, concurrency: str | None) -> tuple[Load, ...]:
    """``"1,2,4,inf"`` requests/s, or ``"1,8,32"`` at once; one of the two.

    Raises:
        ConfigError: both or neither are given, or an entry is no such figure.
    """
    if (rates is None) == (concurrency is None):
        raise ConfigError("Give either --rate (requests/s) or --concurrency (requests in flight).")
    if concurrency is not None:
        return tuple(Load(concurrency=n) for n in parse_counts(concurrency, "concurrency"))
    assert rates is not None
    loads = []
    for item in rates.replace(" ", "").split(","):
        try:
            rate = float(item)
        except ValueError:
            rate = math.nan
        if not rate > 0:
            raise ConfigError(
                f"rate must be a list of requests/s such as 1,2.5,inf, not {rates!r}."
            )
        loads.append(Load(rate=rate))
    return tuple(dict.fromkeys(loads))


def arrivals(rate: float, extent: Extent, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests arrive: a Poisson process.

    The same seed gives the same pattern at every rate, only faster.
    """
    times = _poisson(rate, seed)
    if extent.requests is not None:
        times = itertools.islice(times, extent.requests)
    if extent.seconds is not None:
        end = extent.seconds
        times = itertools.takewhile(lambda at: at < end, times)
    return times


def _poisson(rate: float, seed: int) -> Iterator[float]:
    source = random.Random(f"{seed}/arrivals")
    at = 0.0
    while True:
        yield at
        at += source.expovariate(1.0) / rate
