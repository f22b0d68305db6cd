"""Counts what requests gain and how long they take, since the engine stands."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ppinfer.engine.live import LiveRequest
from ppinfer.engine.state import Latency
from ppinfer.messages import StepPlan

ENDS = ("stop", "length", "abort", "error")


class Tally:
    """Used by the driver's thread alone. Stamps are kept with each ``LiveRequest``."""

    def __init__(self) -> None:
        self.prompt_tokens = self.new_tokens = 0
        self.finished = dict.fromkeys(ENDS, 0)
        self.latency = Latency()

    def planned(self, plan: StepPlan, live: Mapping[int, LiveRequest]) -> None:
        """Requests that have their first step: what is computed once more does not count again."""
        now = time.perf_counter()
        for new in plan.new:
            request = live.get(new.seq_id)
            if request is None or request.launched is not None:
                continue
            request.launched = now
            self.latency.queue.observe(now - request.arrived)
            self.prompt_tokens += new.prompt_len

    def token(self, request: LiveRequest, now: float) -> None:
        """A token was made text at ``now`` (``perf_counter``)."""
        latency = self.latency
        if request.last_token is not None:
            latency.inter_token.observe(now - request.last_token)
        else:
            request.first_token = now
            latency.time_to_first_token.observe(now - request.arrived)
            latency.prefill.observe(now - (request.launched or now))
        request.last_token = now
        self.new_tokens += 1

    def end(self, request: LiveRequest, how: str) -> None:
        """``how`` is one of ``ENDS``; times are those of requests that were not cut off."""
        self.finished[how] += 1
        first, last = request.first_token, request.last_token
        if how in ("stop", "length") and first is not None and last is not None:
            self.latency.decode.observe(last - first)
            self.latency.end_to_end.observe(last - request.arrived)
