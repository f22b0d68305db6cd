"""The figures of a run: how fast it was, and where each stage's time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ppinfer.messages import StageStats


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage's part in a run; shares are of the run's wall time and sum to 1.

    Bytes are resident: weights as they are stored here, KV as the pool is sized.
    """

    stage: int
    first_layer: int
    last_layer: int  # exclusive
    weight_bytes: int
    kv_cache_bytes: int
    rss_bytes: int
    steps: int
    bytes_sent: int
    compute_share: float
    sample_share: float
    prepare_share: float
    wait_plan_share: float
    wait_input_share: float
    send_share: float

    @property
    def num_layers(self) -> int:
        return self.last_layer - self.first_layer

    @property
    def busy_share(self) -> float:
        """What is no wait."""
        return self.compute_share + self.sample_share + self.prepare_share

    def summary(self) -> str:
        """Its part of the line of figures; waits of less than half a percent are left out."""
        waits = {
            "plan": self.wait_plan_share, "input": self.wait_input_share, "send": self.send_share,
        }  # fmt: skip
        shown = [f"{cause} {share:.0%}" for cause, share in waits.items() if share >= 0.005]
        where = f", waits: {' '.join(shown)}" if shown else ""
        return (
            f"stage {self.stage}: layers {self.first_layer}-{self.last_layer - 1}, "
            f"{self.weight_bytes / 1e6:.0f} MB, {self.busy_share:.0%} busy{where}"
        )


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A run: from the first request given to an idle engine until the last one was done.

    ``time_to_first_token`` is in seconds from the start of the run; ``driver_seconds`` is what the
    driver worked: took requests in, planned, committed and made text.
    """

    seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    time_to_first_token: float | None = None
    driver_seconds: float = 0.0
    stages: list[StageReport] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def summary(self) -> str:
        """One line for people."""
        parts = [
            f"{self.new_tokens} tokens in {self.seconds:.2f} s = "
            f"{self.tokens_per_second:.1f} tokens/s"
        ]
        parts += [stage.summary() for stage in self.stages]
        parts.append(f"driver: {self.driver_seconds / max(self.seconds, 1e-9):.0%} busy")
        return " | ".join(parts)


@dataclass(frozen=True, slots=True)
class StageLayout:
    """What is fixed about a stage once the engine stands."""

    first_layer: int
    last_layer: int
    weight_bytes: int
    kv_cache_bytes: int


def stage_reports(
    layouts: Sequence[StageLayout], before: dict[int, StageStats], after: dict[int, StageStats]
) -> list[StageReport]:
    """Shares of the time between two readings of each stage's clock."""
    reports = []
    for number, layout in enumerate(layouts):
        start, end = before[number], after[number]
        wall = max(end.wall - start.wall, 1e-9)
        reports.append(
            StageReport(
                stage=number,
                first_layer=layout.first_layer,
                last_layer=layout.last_layer,
                weight_bytes=layout.weight_bytes,
                kv_cache_bytes=layout.kv_cache_bytes,
                rss_bytes=end.rss_bytes,
                steps=end.steps - start.steps,
                bytes_sent=end.bytes_sent - start.bytes_sent,
                compute_share=(end.compute - start.compute) / wall,
                sample_share=(end.sample - start.sample) / wall,
                prepare_share=(end.prepare - start.prepare) / wall,
                wait_plan_share=(end.wait_plan - start.wait_plan) / wall,
                wait_input_share=(end.wait_input - start.wait_input) / wall,
                send_share=(end.send - start.send) / wall,
            )
        )
    return reports
