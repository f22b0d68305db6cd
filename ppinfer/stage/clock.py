"""Where a stage's time goes. The clock is always in one state, so the parts sum to the wall."""

from __future__ import annotations

import time
from enum import IntEnum

from ppinfer.messages import StageStats


class Activity(IntEnum):
    COMPUTE = 0
    SAMPLE = 1
    WAIT_PLAN = 2
    WAIT_INPUT = 3
    SEND = 4


class StageClock:
    def __init__(self) -> None:
        self._seconds = [0.0] * len(Activity)
        self._now = Activity.WAIT_PLAN
        self._since = time.perf_counter()
        self.steps = 0
        self.tokens = 0
        self.bytes_sent = 0

    def enter(self, activity: Activity) -> None:
        """Close the running span and begin another."""
        now = time.perf_counter()
        self._seconds[self._now] += now - self._since
        self._now = activity
        self._since = now

    def stats(self, stage: int, rss_bytes: int) -> StageStats:
        self.enter(self._now)
        seconds = self._seconds
        return StageStats(
            stage=stage,
            steps=self.steps,
            tokens=self.tokens,
            wall=sum(seconds),
            compute=seconds[Activity.COMPUTE],
            sample=seconds[Activity.SAMPLE],
            wait_plan=seconds[Activity.WAIT_PLAN],
            wait_input=seconds[Activity.WAIT_INPUT],
            send=seconds[Activity.SEND],
            bytes_sent=self.bytes_sent,
            rss_bytes=rss_bytes,
        )
