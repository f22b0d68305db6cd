"""What a pipeline is asked to do: requests, how long they are, and when they come."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ppinfer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as the future knows it.

    Attributes:
        at: seconds from the beginning.
        prompt: tokens.
        new: tokens of its output.
        limit: tokens that its output might have as far as the schedule knows; at least ``new``.
        streamed: whether somebody reads along.
    """

    at: float
    prompt: int
    new: int
    limit: int
    streamed: bool = False


def static_batch(count: int, prompt: int, new: int) -> list[Arrival]:
    """So many equal requests, all there at the beginning; each goes to its limit."""
    _check(count, prompt, new)
    return [Arrival(0.0, prompt, new, new)] * count


def arrivals(
    count: int,
    prompts: tuple[int, int],
    outputs: tuple[int, int],
    *,
    rate: float | None = None,
    seed: int = 0,
) -> list[Arrival]:
    """Requests whose lengths are drawn evenly between two bounds, both included.

    Args:
        rate: how many come a second, on average, at random (a Poisson process); somebody reads
            these along. ``None``: all are there at the beginning.

    Raises:
        ConfigError: a bound is below 1 or out of order; there are no requests, or no rate.
    """
    _check(count, prompts[0], outputs[0])
    for low, high in (prompts, outputs):
        if high < low:
            raise ConfigError(f"lengths must be given from low to high, not {low}-{high}.")
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"a rate must be requests a second above 0, not {rate}.")
    draw = random.Random(seed)
    at = 0.0
    found = []
    for _ in range(count):
        at += draw.expovariate(rate) if rate is not None else 0.0
        prompt, new = draw.randint(*prompts), draw.randint(*outputs)
        found.append(Arrival(at, prompt, new, new, rate is not None))
    return found


def _check(count: int, prompt: int, new: int) -> None:
    for name, value in (("requests", count), ("prompt", prompt), ("new", new)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
