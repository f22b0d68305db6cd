"""The processors that steps run on, in modelled time.

A stage with a device of its own never waits for it. Stages that share a host's cores are given an
equal part of them each while more threads want to run than there are cores, as an operating system
does (processor sharing).
"""

from __future__ import annotations


class Host:
    """``cores`` are shared by all tasks."""

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._left: dict[int, float] = {}  # seconds of work, by stage
        self._threads: dict[int, int] = {}
        self._since = 0.0
        self.version = 0
        """Changes whenever ``next_end`` does."""

    def begin(self, now: float, stage: int, seconds: float, threads: int) -> None:
        """A stage starts to compute what takes so long where nobody else does."""
        self._advance(now)
        self._left[stage] = seconds
        self._threads[stage] = threads
        self.version += 1

    def end(self, now: float, stage: int) -> None:
        self._advance(now)
        del self._left[stage], self._threads[stage]
        self.version += 1

    def next_end(self) -> tuple[float, int] | None:
        """When which stage is done first, if nothing changes."""
        if not self._left:
            return None
        stage = min(self._left, key=lambda stage: (self._left[stage], stage))
        return self._since + self._left[stage] / self._rate, stage

    @property
    def _rate(self) -> float:
        wanted = sum(self._threads.values())
        return min(1.0, self._cores / wanted)

    def _advance(self, now: float) -> None:
        if self._left:
            done = (now - self._since) * self._rate
            for stage in self._left:
                self._left[stage] = max(0.0, self._left[stage] - done)
        self._since = now
