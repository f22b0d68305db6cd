"""A pipeline in numbers: its stages, what joins them, and how it is driven."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppinfer.planner.cost import StageCost
from ppinfer.planner.hardware import Link
from ppinfer.schedule.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class DriverCost:
    """Seconds of the driver, and of a message between it and a stage.

    Measured with ``ppinfer bench driver`` on one core of a server processor.
    """

    step: float = 100e-6
    sequence: float = 2e-6
    message: float = 60e-6


@dataclass(frozen=True, kw_only=True)
class PipelineModel:
    """
    Attributes:
        stages: what a step takes on each.
        links: from each stage to the next.
        back: from the last stage to the first, for ids of drawn tokens.
        row_bytes: hidden states of one token.
        num_blocks: KV blocks, the same number on every stage.
        tuning: micro-batches, chunk size and what a step is predicted to take.
        max_sequences: that run at once.
        cores: shared by all stages; infinite where each has a device of its own.
    """

    stages: tuple[StageCost, ...]
    links: tuple[Link, ...]
    back: Link
    row_bytes: int
    num_blocks: int
    tuning: Tuning
    max_sequences: int
    block_size: int = 16
    driver: DriverCost = DriverCost()
    cores: float = math.inf

    def __post_init__(self) -> None:
        assert len(self.links) == len(self.stages) - 1, "a link from each stage to the next"
