"""What is known of an engine at one moment. Counters only grow while the engine lives."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, TypeAlias

import msgspec

SequencePhase: TypeAlias = Literal["waiting", "prefill", "decode"]

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25,
                 0.5, 1.0, 2.5)  # fmt: skip
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram(msgspec.Struct):
    """``counts[i]`` observations were at most ``bounds[i]`` and more than the bound before; the
    last one counts those above all bounds."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def within(cls, bounds: tuple[float, ...]) -> Histogram:
        return cls(bounds, [0] * (len(bounds) + 1))

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        return Histogram(self.bounds, self.counts.copy(), self.sum)


def _within(bounds: tuple[float, ...]) -> Histogram:
    return msgspec.field(default_factory=lambda: Histogram.within(bounds))


class Latency(msgspec.Struct):
    """Seconds, as the driver sees them: what HTTP and chat templates add is not in them.

    Attributes:
        time_to_first_token: from a request's arrival.
        inter_token: between two tokens of one request.
        queue: from its arrival to its first step.
        prefill: from its first step to its first token.
        decode: from its first token to its last, of requests that ended by themselves.
        end_to_end: from its arrival to its last token, of the same.
    """

    time_to_first_token: Histogram = _within(_FIRST)
    inter_token: Histogram = _within(_MILLISECONDS)
    queue: Histogram = _within(_QUEUE)
    prefill: Histogram = _within(_FIRST)
    decode: Histogram = _within(_WHOLE)
    end_to_end: Histogram = _within(_WHOLE)

    def copy(self) -> Latency:
        return Latency(*[getattr(self, name).copy() for name in self.__struct_fields__])


class StageState(msgspec.Struct, frozen=True):
    """One stage. Seconds are its clock's since its cache was set up: a stage is always in exactly
    one of these activities, so they sum to the time since.

    ``wait_plan`` includes the time in which there is no request. ``heartbeat_age`` is how many
    seconds ago it last said anything; a stage at work answers behind the steps that it knows of.
    """

    stage: int
    first_layer: int
    last_layer: int  # exclusive
    weight_bytes: int
    kv_cache_bytes: int
    heartbeat_age: float
    rss_bytes: int = 0
    steps: int = 0
    bytes_sent: int = 0
    compute: float = 0.0
    sample: float = 0.0
    prepare: float = 0.0
    wait_plan: float = 0.0
    wait_input: float = 0.0
    send: float = 0.0
    restarts: int = 0

    @property
    def busy(self) -> float:
        """Seconds that were no wait."""
        return self.compute + self.sample + self.prepare

    @property
    def waits(self) -> dict[str, float]:
        """Seconds by what it waited for."""
        return {"plan": self.wait_plan, "input": self.wait_input, "send": self.send}


class SequenceState(msgspec.Struct, frozen=True, gc=False):
    """A request that is waiting or under way; ``age`` is in seconds since its arrival."""

    seq_id: int
    phase: SequencePhase
    age: float
    prompt_tokens: int
    new_tokens: int


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        prompt_tokens: of requests that have begun, those found in the prefix cache included.
        cached_tokens, queried_tokens: prompt tokens found in the prefix cache, and looked up there.
        new_tokens: as far as they were handed out.
        preemptions: how often a running request had to give its KV blocks back.
        finished: requests by how they ended: ``stop``, ``length``, ``abort``, or ``error``.
        driver_seconds: the driver's time by activity (``trace.clock.DriverActivity``).
    """

    running: int = 0
    waiting: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queried_tokens: int = 0
    new_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = {}
    latency: Latency = msgspec.field(default_factory=Latency)
    driver_seconds: dict[str, float] = {}
    stages: list[StageState] = []
    sequences: list[SequenceState] = []


class StepLabel(msgspec.Struct, frozen=True, gc=False):
    """What a step was: ``words`` such as ``prefill 500 + decode 12``."""

    slot: int
    words: str


class StageSpans(msgspec.Struct, frozen=True):
    """What a stage did since it was last asked: a ``trace.clock.Recording``. ``shift`` makes its
    times the driver's."""

    start: int
    packed: bytes
    dropped: int
    shift: int


class LiveState(msgspec.Struct, frozen=True):
    """A moment for who watches: ``now`` is the driver's clock, in nanoseconds; ``spans`` has an
    entry a stage, or none where stages have not answered in time; ``steps`` are those planned since
    the last one."""

    now: int
    state: EngineState
    spans: list[list[StageSpans]]
    steps: dict[int, StepLabel]
