"""What a simulated run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppinfer.percentile import percentile
from ppinfer.trace.model import Trace


@dataclass(frozen=True)
class StageUse:
    """Seconds of one stage by activity, and of its waits by cause (as in ``trace/analysis.py``)."""

    work: dict[str, float]
    waits: dict[str, float]
    steps: int
    seconds: float

    @property
    def busy_share(self) -> float:
        return sum(self.work.values()) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Percentiles:
    """In seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.99))
        return cls(sum(values) / len(values), p50, p90, p99)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """
    Attributes:
        seconds: from the first request to the last token.
        first_token, between_tokens, whole: latency of requests, from when each came.
        kv_peak, kv_mean: parts of the KV blocks that were in use.
        steps: of the pipeline.
        sequences_a_step: on average.
        trace: where it was asked for.
    """

    seconds: float
    requests: int
    prompt_tokens: int
    new_tokens: int
    first_token: Percentiles
    between_tokens: Percentiles
    whole: Percentiles
    kv_peak: float
    kv_mean: float
    steps: int
    sequences_a_step: float
    preemptions: int
    stages: tuple[StageUse, ...]
    trace: Trace | None = None

    @property
    def throughput(self) -> float:
        """Output tokens a second over the whole run."""
        return self.new_tokens / self.seconds
