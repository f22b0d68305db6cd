"""What happened in the last second, from counters that only grow."""

from __future__ import annotations

import msgspec

from ppinfer.engine.state import EngineState, StageState

INTERVAL = 1.0
"""Seconds between two samples, at least."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A second for the charts; ``time_to_first_token`` is the mean of those that came in it."""

    at: float  # seconds since the epoch
    tokens_per_second: float
    time_to_first_token: float | None
    waiting: int
    running: int
    kv_usage: float


class Shares(msgspec.Struct, frozen=True):
    """Of a stage's time in the last second: at work, and waiting by what for."""

    busy: float
    plan: float
    input: float
    send: float


class Rates:
    """Makes a sample of two states that are a second apart.

    Attributes:
        shares: of each stage, ``None`` while it says nothing new.
    """

    def __init__(self) -> None:
        self.shares: list[Shares | None] = []
        self._before: tuple[float, EngineState] | None = None

    def take(self, at: float, state: EngineState) -> Sample | None:
        if self._before is None:
            self._before = at, state
            return None
        since, before = self._before
        if at - since < INTERVAL:
            return None
        self._before = at, state
        self.shares = [_shares(*pair) for pair in zip(before.stages, state.stages, strict=True)]
        first, earlier = state.latency.time_to_first_token, before.latency.time_to_first_token
        count = first.count - earlier.count
        return Sample(
            at=round(at, 1),
            tokens_per_second=round((state.new_tokens - before.new_tokens) / (at - since), 1),
            time_to_first_token=round((first.sum - earlier.sum) / count, 4) if count else None,
            waiting=state.waiting,
            running=state.running,
            kv_usage=round(state.kv_blocks_used / max(1, state.kv_blocks), 4),
        )


def _shares(before: StageState, after: StageState) -> Shares | None:
    busy = after.busy - before.busy
    waits = [
        now - then for now, then in zip(after.waits.values(), before.waits.values(), strict=True)
    ]
    total = busy + sum(waits)
    if total <= 0:
        return None
    return Shares(*[round(part / total, 3) for part in (busy, *waits)])
