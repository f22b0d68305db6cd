"""How long something takes on a device, at several sizes and in a bounded time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ppinfer.messages import Points

_FEWEST_SAMPLES, _MOST_SAMPLES, _ENOUGH_SECONDS = 3, 7, 0.01
_LONG_SECONDS = 0.2
"""A first run that takes longer is the measurement itself."""


class Stopwatch:
    """Times what runs on ``device``, on a GPU until it is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def curve(
        self,
        order: Sequence[int],
        part: Callable[[int], Callable[[], object]],
        scale: float,
        seconds: float,
    ) -> Points:
        """Times of ``part``, the first two rows of the order always, more as far as time allows.

        Each run does ``scale`` times what is counted once.
        """
        deadline = time.perf_counter() + seconds
        points: dict[int, float] = {}
        for number in dict.fromkeys(order):
            if len(points) >= 2:
                largest = max(points)
                expected = points[largest] * scale * max(1.0, number / largest)
                if time.perf_counter() + expected * (1 + _FEWEST_SAMPLES) > deadline:
                    continue
            points[number] = self._sample(part(number)) / scale
        return tuple(sorted(points.items()))

    def _sample(self, run: Callable[[], object]) -> float:
        """The median of several runs, after one that makes ready what is made once."""
        if self._device.type == "cuda":
            self._time(run)  # kernels are compiled, which may take longer than all the rest
        first = self._time(run)
        if first > _LONG_SECONDS:
            return first
        samples: list[float] = []
        while len(samples) < _FEWEST_SAMPLES or (
            len(samples) < _MOST_SAMPLES and sum(samples) < _ENOUGH_SECONDS
        ):
            samples.append(self._time(run))
        return statistics.median(samples)

    def _time(self, run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started
