"""Times of something at several sizes: which, and how often; on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ppinfer.stage import stopwatch
from ppinfer.stage.stopwatch import Stopwatch


class Work:
    """``seconds(size)`` is what a run takes; the first of each size takes twice that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
        self.now, self.runs = 0.0, []
        self._seconds = seconds
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(stopwatch, "time", clock)

    def part(self, size: int) -> Callable[[], object]:
        def run() -> None:
            self.now += self._seconds(size) * (1 if size in self.runs else 2)
            self.runs.append(size)

        return run

    def curve(
        self, order: list[int], seconds: float, scale: float = 1, device: str = "cpu"
    ) -> dict[int, float]:
        watch = Stopwatch(torch.device(device))
        return dict(watch.curve(order, self.part, scale, seconds))


def test_every_size_in_order_without_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, lambda size: size / 1000)
    assert work.curve([1, 8, 4, 1], 1.0) == pytest.approx({1: 1e-3, 4: 4e-3, 8: 8e-3})
    assert list(work.curve([4, 1], 1.0)) == [1, 4]


def test_a_part_of_what_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, lambda size: size / 1000)
    assert work.curve([2], 1.0, scale=4) == pytest.approx({2: 0.5e-3})


def test_two_sizes_at_least_and_more_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, lambda size: size / 100)
    assert list(work.curve([1, 8, 4, 2], 0.0)) == [1, 8]
    assert list(work.curve([1, 8, 4, 2], 0.8)) == [1, 4, 8]


def test_a_long_first_run_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, lambda size: 1.0)
    assert work.curve([3], 0.0) == {3: 2.0}
    assert work.runs == [3]


def test_what_a_gpu_compiles_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    work = Work(monkeypatch, lambda size: 1.0)
    assert work.curve([3], 0.0, device="cuda") == {3: 1.0}
