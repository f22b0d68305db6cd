"""Measures runs: what happened between two readings of the stages' clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ppinfer.engine.report import EngineReport, StageLayout, stage_reports
from ppinfer.engine.rounds import Rounds
from ppinfer.messages import StageStats

Reading = dict[int, StageStats]
"""Each stage's clock at one moment of its work; filled as the answers come."""


class RunWindow:
    """One run: it begins with the first request given to an idle engine, and ends with the last."""

    def __init__(self, before: Reading, driver_seconds: float) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.before = before
        self.after: Reading = {}
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._first_token: float | None = None
        self._new_tokens = 0
        self._driver_before = self._driver_after = driver_seconds

    def count_tokens(self, count: int) -> None:
        if count and self._first_token is None:
            self._first_token = time.perf_counter() - self._started
        self._new_tokens += count

    def end(self, after: Reading, driver_seconds: float) -> None:
        self.after = after
        self._driver_after = driver_seconds
        self._ended = time.perf_counter()

    @property
    def is_open(self) -> bool:
        return self._ended is None

    def report(
        self, layouts: Sequence[StageLayout], after: Reading, driver_seconds: float
    ) -> EngineReport:
        """``driver_seconds`` counts while the window is open."""
        until = driver_seconds if self.is_open else self._driver_after
        return EngineReport(
            seconds=(self._ended or time.perf_counter()) - self._started,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=self._new_tokens,
            time_to_first_token=self._first_token,
            driver_seconds=until - self._driver_before,
            stages=stage_reports(layouts, self.before, after),
        )


class Meter:
    """Opens and closes windows for the driver, and answers who asks for the figures.

    ``request_clocks`` asks every stage for its clock; answers come back in the order of asking.
    ``driver_clock`` gives the driver's seconds by activity, waiting first. ``latest`` is the newest
    answer of each stage.
    """

    def __init__(
        self,
        layouts: Sequence[StageLayout],
        request_clocks: Callable[[], None],
        driver_clock: Callable[[], Sequence[float]],
    ) -> None:
        self._layouts = layouts
        self._request_clocks = request_clocks
        self._driver_clock = driver_clock
        self._rounds: Rounds[StageStats] = Rounds(len(layouts))
        self._asked: list[tuple[Future[EngineReport], RunWindow, Reading]] = []
        self._refreshing: Reading | None = None
        self._refreshed: list[Future[None]] = []
        self.latest: Reading = {}
        self.window: RunWindow | None = None

    def begin(self) -> RunWindow:
        """The open window; a new one if there is none."""
        if self.window is None or not self.window.is_open:
            self.window = RunWindow(self._read(), self._driver_seconds())
        return self.window

    def end(self) -> None:
        if self.window is not None and self.window.is_open:
            self.window.end(self._read(), self._driver_seconds())

    def take(self, stats: StageStats) -> None:
        self.latest[stats.stage] = stats
        self._rounds.take(stats.stage, stats)
        self._answer()

    def unanswered(self) -> tuple[float, int] | None:
        """When the oldest open reading was asked for (monotonic), and a stage that it lacks."""
        return self._rounds.unanswered()

    def refresh(self, future: Future[None]) -> None:
        """Read every clock, and resolve ``future`` then; a reading under way is joined."""
        self._refreshed.append(future)
        if self._refreshing is None:
            self._refreshing = self._read()

    def ask(self, future: Future[EngineReport]) -> None:
        """Resolve ``future`` with the figures of the run under way, or else of the last one."""
        if self.window is None:
            self.begin()
            self.end()
        assert self.window is not None
        after = self._read() if self.window.is_open else self.window.after
        self._asked.append((future, self.window, after))
        self._answer()

    def fail(self, error: Exception) -> None:
        """Tell everyone who still waits that no figures will come."""
        for future, _, _ in self._asked:
            future.set_exception(error)
        self._asked.clear()
        for refreshed in self._refreshed:
            refreshed.set_exception(error)
        self._refreshed.clear()

    def _driver_seconds(self) -> float:
        return sum(self._driver_clock()[1:])

    def _read(self) -> Reading:
        reading = self._rounds.begin().answers
        self._request_clocks()
        return reading

    def _is_complete(self, reading: Reading) -> bool:
        return len(reading) == len(self._layouts)

    def _answer(self) -> None:
        waiting = []
        for future, window, after in self._asked:
            if self._is_complete(after) and self._is_complete(window.before):
                future.set_result(window.report(self._layouts, after, self._driver_seconds()))
            else:
                waiting.append((future, window, after))
        self._asked = waiting
        if self._refreshing is not None and self._is_complete(self._refreshing):
            self._refreshing = None
            for fresh in self._refreshed:
                fresh.set_result(None)
            self._refreshed.clear()
