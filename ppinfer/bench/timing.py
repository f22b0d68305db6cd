"""Turning moments at which tokens came into the figures of a run. No torch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

from ppinfer.bench.procfs import reset_peak
from ppinfer.engine.cpu_time import Reading
from ppinfer.percentile import percentile


class Watched:
    """A span of time in which the processor time of this process and ``others`` is followed."""

    def __init__(self, others: Sequence[int] = ()) -> None:
        self._pids = [os.getpid(), *others]
        self.started = self.ended = 0.0
        self.other_cpu = self.stolen_cpu = 0.0

    def __enter__(self) -> Watched:
        for pid in self._pids:
            reset_peak(pid)
        self._before = Reading.now(self._pids)
        self.started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended = time.perf_counter()
        shares = Reading.now(self._pids).shares_since(self._before)
        self.other_cpu, self.stolen_cpu = shares


def summarise(times: Sequence[Sequence[float]], new: int, watched: Watched) -> dict[str, Any]:
    """A ``records.Run`` without what only its row knows.

    ``times`` has, for each sequence, the moment of each of its ``new`` tokens.
    """
    short = next((len(moments) for moments in times if len(moments) != new), None)
    if short is not None:
        raise RuntimeError(f"a sequence got {short} tokens instead of {new}")
    prefilled = max(moments[0] for moments in times)
    gaps = [after - before for moments in times for before, after in pairwise(moments)]
    return {
        "seconds": watched.ended - watched.started,
        "prefill_seconds": prefilled - watched.started,
        "first_token_seconds": statistics.median(m[0] - watched.started for m in times),
        "decoded": sum(moment > prefilled for moments in times for moment in moments),
        "token_p50": percentile(gaps, 0.5),
        "token_p99": percentile(gaps, 0.99),
        "other_cpu": watched.other_cpu,
        "stolen_cpu": watched.stolen_cpu,
    }
