"""Pipelines in numbers, small enough to reckon by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ppinfer.planner.cost import StepSeconds
from ppinfer.planner.hardware import Device, Link
from ppinfer.planner.pipeline import DriverCost, PipelineModel
from ppinfer.planner.shape import ModelShape
from ppinfer.planner.work import StepWork
from ppinfer.schedule.tuning import Tuning

MODEL = ModelShape(
    name="small", num_layers=8, hidden_size=512, layer_parameters=4_000_000,
    embedding_parameters=4_096_000, head_parameters=4_096_512, q_size=512, kv_size=128,
    vocab_size=8000, max_position=4096,
)  # fmt: skip
CARD = Device(
    name="card", memory=2 * 10**9, usable=10**9, bandwidth=100e9,
    peak={"fp32": 5e12, "bf16": 20e12}, source="a test",
)  # fmt: skip
DRIVER = DriverCost(step=2e-4, sequence=1e-6, message=5e-5)


@dataclass(frozen=True)
class Stage:
    """Seconds of a step: for itself, for each row, and its other parts."""

    compute: float = 1e-3
    row: float = 0.0
    prepare: float = 0.0
    sample: float = 0.0
    send: float = 0.0

    def step(self, work: StepWork, threads: int) -> StepSeconds:
        compute = self.compute + self.row * work.tokens
        return StepSeconds(self.prepare, compute, self.sample, self.send)


def link(bandwidth: float = 1e15, latency: float = 0.0) -> Link:
    return Link(name="wire", bandwidth=bandwidth, latency=latency, source="a test")


def pipeline(
    stages: Sequence[Stage],
    links: Sequence[Link] | None = None,
    *,
    slots: int | None = None,
    size: int = 8,
    chunk: int = 512,
    num_blocks: int = 10_000,
    block_size: int = 16,
    cores: float = math.inf,
    driver: DriverCost = DRIVER,
) -> PipelineModel:
    """``slots`` micro-batches (one a stage) of up to ``size`` sequences; hidden states of 1 kB."""
    slots = slots or len(stages)
    links = [link()] * (len(stages) - 1) if links is None else links
    return PipelineModel(
        stages=tuple(stages),
        links=tuple(links),
        back=links[-1] if links else link(),
        row_bytes=1000,
        num_blocks=num_blocks,
        tuning=Tuning(
            micro_batches=tuple(min(n, slots) for n in range(1, slots * size + 1)),
            threads=(0,),
            max_prefill_tokens=chunk,
        ),
        max_sequences=slots * size,
        block_size=block_size,
        driver=driver,
        cores=cores,
    )
