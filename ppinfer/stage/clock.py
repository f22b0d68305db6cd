"""Where a stage's time goes. The clock is always in one activity, so the parts sum to the wall."""

from __future__ import annotations

import time

from ppinfer.messages import StageStats, StageTrace
from ppinfer.trace.clock import Activity, Clock

__all__ = ["Activity", "StageClock"]


class StageClock(Clock):
    def __init__(self) -> None:
        super().__init__(Activity.WAIT_PLAN)
        self.steps = 0
        self.tokens = 0
        self.bytes_sent = 0

    def stats(self, stage: int, rss_bytes: int) -> StageStats:
        seconds = self.seconds()
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
            prepare=seconds[Activity.PREPARE],
        )

    def trace(self, on: bool, stage: int) -> StageTrace:
        """Hand over what was recorded since the last time; ``on`` says whether to record on."""
        found = self.take_recording(on)
        return StageTrace(stage, time.perf_counter_ns(), found.start, found.packed, found.dropped)
