"""What the study simulates: models, devices, fabrics, loads, and one run of each.

A run is a pure function of its ``Case``, so cases that several tables need are simulated once, and
all of them on as many cores as there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from ppinfer.config import EngineConfig
from ppinfer.errors import CapacityError
from ppinfer.planner.assemble import KV_SHARE, Assembled, assemble
from ppinfer.planner.cost import Efficiency
from ppinfer.planner.hardware import Device, Link, load_catalog
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.shape import ModelShape
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import Arrival

ResultT = TypeVar("ResultT")


def llama(name: str, layers: int, hidden: int, inner: int, kv_heads: int) -> ModelShape:
    """Sizes from the model's public ``config.json``; heads of 128."""
    kv_size, vocab = kv_heads * 128, 128_256
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        layer_parameters=2 * hidden * (hidden + kv_size) + 3 * hidden * inner + 2 * hidden,
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden + hidden,
        q_size=hidden,
        kv_size=kv_size,
        vocab_size=vocab,
        max_position=131_072,
    )


MODELS = {
    "70B": llama("Llama 3.1 70B", 80, 8192, 28_672, 8),
    "405B": llama("Llama 3.1 405B", 126, 16_384, 53_248, 8),
}
CATALOG = load_catalog()
EAGER = Efficiency(
    bandwidth=0.85, kv_bandwidth=0.7, peak=0.6, layer_seconds=60e-6, step_seconds=400e-6
)
"""Good kernels that are started one by one; no system's own, since schedules are compared."""
DEVICES = ("a10", "l40s", "a100-80", "h100")
NAMES = {"a10": "A10", "l40s": "L40S", "a100-80": "A100-80", "h100": "H100"}
STAGES = (2, 4, 8, 16, 32, 64)
HOST = 8
"""Devices in one host."""
FABRICS = {
    "a10": ("pcie4", "ethernet-100"),
    "l40s": ("pcie4", "ethernet-100"),
    "a100-80": ("nvlink3", "infiniband-ndr"),
    "h100": ("nvlink4", "infiniband-ndr"),
}
"""Links in a host, and between hosts."""
IDEAL = Link(name="ideal", bandwidth=1e15, latency=0.0, source="")
PROMPTS, OUTPUTS = (128, 384), (64, 192)
PLACES = 16
"""Sequences of a micro-batch, one micro-batch a stage."""
WAVES = 2
"""Requests for each place."""


@dataclass(frozen=True)
class Case:
    """One simulation. The factors change what the hardware or the software can do.

    Attributes:
        links: one kind for all, or ``None`` for the device's own fabric; ``ideal`` takes no time.
        places: sequences of a micro-batch; 0 is one request alone.
        rate: requests a second, or 0 for all at the beginning.
        count: requests, or 0 for ``WAVES`` a place.
        micro_batches, chunk: 0 for one a stage, and for what suits the device.
        tuned: micro-batches and chunk as the engine chooses them when they are left open.
        prompts, outputs: shortest and longest.
    """

    model: str
    device: str
    stages: int
    links: str | None = None
    places: int = PLACES
    rate: float = 0.0
    count: int = 0
    micro_batches: int = 0
    chunk: int = 0
    tuned: bool = False
    prompts: tuple[int, int] = PROMPTS
    outputs: tuple[int, int] = OUTPUTS
    bandwidth: float = 1.0
    peak: float = 1.0
    memory: float = 1.0
    launch: float = 1.0
    link: float = 1.0


@dataclass(frozen=True)
class Run:
    """``outcome`` is ``None`` where the model does not fit."""

    case: Case
    outcome: Outcome | None = None
    layers: tuple[int, ...] = ()
    kv_tokens: int = 0
    micro_batches: int = 0
    chunk: int = 0

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        assert self.outcome is not None
        return self.outcome.throughput


def suitable_chunk(device: Device) -> int:
    """Prompt tokens at which a product stops waiting for weights, as a power of two."""
    rows = device.peak["bf16"] * EAGER.peak / (device.bandwidth * EAGER.bandwidth)
    return int(2 ** round(math.log2(rows)))


def build(case: Case) -> Assembled:
    """Raises ``CapacityError`` where the model does not fit."""
    device = CATALOG.device(case.device)
    chunk = case.chunk or suitable_chunk(device)
    device = replace(
        device,
        bandwidth=device.bandwidth * case.bandwidth,
        peak={name: rate * case.peak for name, rate in device.peak.items()},
        memory=int(device.memory * case.memory),
        usable=int(device.usable * case.memory),
    )
    efficiency = replace(
        EAGER,
        layer_seconds=EAGER.layer_seconds * case.launch,
        step_seconds=EAGER.step_seconds * case.launch,
    )
    inner, outer = (_link(name, case.link) for name in _fabric(case))
    links = [outer if (stage + 1) % HOST == 0 else inner for stage in range(case.stages - 1)]
    places = max(1, case.places * case.stages)
    config = EngineConfig(
        pp_size=case.stages,
        max_num_seqs=places,
        max_model_len=case.prompts[1] + case.outputs[1],
        num_micro_batches=None if case.tuned else case.micro_batches or case.stages,
        max_prefill_tokens=None if case.tuned else chunk,
    )
    context = (sum(case.prompts) + sum(case.outputs) // 2) // 2
    devices = [device] * case.stages
    made = assemble(
        MODELS[case.model], devices, links, "bf16", config, context=context, efficiency=efficiency
    )
    back = outer if case.stages > HOST else inner
    return replace(made, pipeline=replace(made.pipeline, back=back))


def _fabric(case: Case) -> tuple[str, str]:
    return FABRICS[case.device] if case.links is None else (case.links, case.links)


def _link(name: str, factor: float) -> Link:
    link = IDEAL if name == "ideal" else CATALOG.link(name)
    return replace(link, bandwidth=link.bandwidth * factor, latency=link.latency / factor)


def kv_tokens(made: Assembled) -> int:
    """Tokens whose keys and values fit, whatever may run at once."""
    return min(
        int(KV_SHARE * (device.usable - held.without_kv)) // held.kv_block
        for device, held in zip(made.devices, made.memory, strict=True)
    ) * made.pipeline.block_size  # fmt: skip


def requests(case: Case) -> list[Arrival]:
    """The same lengths for the same number of requests, and shorter runs see the first of them."""
    draw = random.Random(0)
    count = case.count or max(1, case.places * case.stages * WAVES)
    found, at = [], 0.0
    for _ in range(count):
        prompt, new = draw.randint(*case.prompts), draw.randint(*case.outputs)
        gap = draw.expovariate(1.0)
        if case.places == 0:
            prompt, new = sum(case.prompts) // 2, sum(case.outputs) // 2
        at += gap / case.rate if case.rate else 0.0
        found.append(Arrival(at, prompt, new, case.outputs[1], streamed=case.rate > 0))
    return found


def run(case: Case) -> Run:
    try:
        made = build(case)
    except CapacityError:
        return Run(case)
    return Run(
        case,
        simulate(made.pipeline, requests(case)),
        tuple(last - first for first, last in made.ranges),
        kv_tokens(made),
        made.pipeline.tuning.micro_batches[-1],
        made.pipeline.tuning.max_prefill_tokens,
    )


class Runs:
    """Every run that was asked for, each simulated once."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._known: dict[Case, Run] = {}

    def all(self, cases: Iterable[Case]) -> list[Run]:
        """In the order of the cases; the longest are begun first."""
        wanted = list(cases)
        new = [case for case in dict.fromkeys(wanted) if case not in self._known]
        new.sort(key=lambda case: -case.stages * max(case.places, 1))
        self._known.update(zip(new, self._pool.map(run, new), strict=True))
        return [self._known[case] for case in wanted]

    def map(self, call: Callable[..., ResultT], *columns: Iterable[object]) -> list[ResultT]:
        """Other simulations, side by side."""
        return list(self._pool.map(call, *columns))
