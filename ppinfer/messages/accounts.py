"""Where a stage's time went, why it failed, and its end."""

from __future__ import annotations

from ppinfer.messages.base import Message


class StatsRequest(Message, frozen=True):
    pass


class StageStats(Message, frozen=True):
    """Seconds since the cache was set up; the parts sum to ``wall``."""

    stage: int
    steps: int
    tokens: int
    wall: float
    compute: float
    sample: float
    wait_plan: float
    wait_input: float
    send: float
    bytes_sent: int
    rss_bytes: int
    prepare: float = 0.0


class TraceRequest(Message, frozen=True):
    """Hand over the spans recorded since the last request, as a ``StageTrace``; ``on`` says whether
    to record on, or to begin."""

    on: bool


class StageTrace(Message, frozen=True):
    """``now`` is the stage's clock when it answered; the rest is a ``trace.clock.Recording``,
    empty where nothing was recorded."""

    stage: int
    now: int  # nanoseconds, monotonic
    start: int = 0
    spans: bytes = b""
    dropped: int = 0


class StageFailure(Message, frozen=True):
    """The stage cannot go on. ``kind`` names an exception of ``ppinfer.errors``.

    ``blamed`` is the stage at fault: often a neighbour that this one waited for in vain.
    """

    stage: int
    kind: str
    message: str
    blamed: int


class Shutdown(Message, frozen=True):
    pass
