"""From devices, links and settings to a pipeline in numbers, cut and tuned as the engine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppinfer.config import EngineConfig
from ppinfer.errors import CapacityError
from ppinfer.planner.cost import Efficiency, RooflineCost
from ppinfer.planner.hardware import Device, Link
from ppinfer.planner.memory import StageMemory, layer_costs, stage_memory
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.shape import ITEM_BYTES, ModelShape
from ppinfer.schedule.pace import Measured
from ppinfer.schedule.partition import StageRange
from ppinfer.schedule.tuning import tune

KV_SHARE = 0.9
"""Of what is free beside weights, the part that a GPU's KV cache may take."""


@dataclass(frozen=True)
class Assembled:
    """A pipeline, where its layers lie and what its stages hold."""

    pipeline: PipelineModel
    ranges: tuple[StageRange, ...]
    memory: tuple[StageMemory, ...]
    devices: tuple[Device, ...]


def assemble(
    model: ModelShape,
    devices: Sequence[Device],
    links: Sequence[Link],
    dtype: str,
    config: EngineConfig,
    *,
    context: int,
    efficiency: Efficiency,
) -> Assembled:
    """The pipeline of a stage a device.

    Args:
        config: ``pp_size`` is the number of devices.
        context: tokens that a decoding sequence has, typically.

    Raises:
        ConfigError: a device does not compute in this dtype, or see ``partition_layers``.
        CapacityError: the model, or not even one request of ``context`` tokens, fits.
    """
    assert config.pp_size == len(devices)
    whole = (0, model.num_layers)
    tables = [
        RooflineCost(device, model, whole, dtype, efficiency).table(config.max_sequences, context)
        for device in devices
    ]
    sizes = layer_costs(model, dtype)
    ranges, tuning = tune(
        Measured(tuple(tables)), sizes, config, [device.usable for device in devices]
    )
    memory = tuple(
        stage_memory(
            model,
            layers,
            dtype,
            max_step_tokens=tuning.max_prefill_tokens + config.max_sequences,
            max_sequences=config.max_sequences,
            block_size=config.block_size,
        )
        for layers in ranges
    )
    num_blocks = _num_blocks(model, devices, memory, config)
    return Assembled(
        PipelineModel(
            stages=tuple(
                RooflineCost(device, model, layers, dtype, efficiency)
                for device, layers in zip(devices, ranges, strict=True)
            ),
            links=tuple(links),
            back=links[-1] if links else Link(name="", bandwidth=1e12, latency=0.0, source=""),
            row_bytes=model.hidden_size * ITEM_BYTES[dtype],
            num_blocks=num_blocks,
            tuning=tuning,
            max_sequences=config.max_sequences,
            block_size=config.block_size,
        ),
        ranges,
        memory,
        tuple(devices),
    )


def _num_blocks(
    model: ModelShape,
    devices: Sequence[Device],
    memory: Sequence[StageMemory],
    config: EngineConfig,
) -> int:
    """Blocks of the poorest stage, or as many as all sequences can ever use."""
    counts = []
    for stage, (device, held) in enumerate(zip(devices, memory, strict=True)):
        budget = config.kv_cache_memory or int(KV_SHARE * (device.usable - held.without_kv))
        counts.append(budget // held.kv_block)
        if counts[-1] < 1:
            raise CapacityError(
                f"Stage {stage} on {device.name} has {device.usable / 1e9:.1f} GB, but needs "
                f"{held.without_kv / 1e9:.1f} GB without any KV cache; use more devices, larger "
                "ones, or a smaller dtype."
            )
    longest = config.max_model_len or model.max_position
    return min(min(counts), config.max_sequences * -(-longest // config.block_size))
