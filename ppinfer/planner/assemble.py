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
from ppinfer.schedule.tuning import PREFILL_CHUNKS, tune

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
        CapacityError: the model does not fit, with what a step needs and any KV cache.
    """
    assert config.pp_size == len(devices)
    whole = (0, model.num_layers)

    def held(layers: StageRange, chunk: int) -> StageMemory:
        return stage_memory(
            model,
            layers,
            dtype,
            max_step_tokens=chunk + config.max_sequences,
            max_sequences=config.max_sequences,
            block_size=config.block_size,
        )

    tables = [
        RooflineCost(device, model, whole, dtype, efficiency).table(config.max_sequences, context)
        for device in devices
    ]
    sizes = layer_costs(model, dtype)
    # What stands beside the weights is known once the chunk is; at least so much it will be.
    least = held(whole, config.max_prefill_tokens or min(PREFILL_CHUNKS))
    beside = [least.workspace + least.activations] * len(devices)
    beside[-1] += least.logits
    room = [max(0, device.usable - taken) for device, taken in zip(devices, beside, strict=True)]
    ranges, tuning = tune(Measured(tuple(tables)), sizes, config, room)
    memory = tuple(held(layers, tuning.max_prefill_tokens) for layers in ranges)
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
        free = device.usable - held.without_kv
        budget = config.kv_cache_memory or int(KV_SHARE * free)
        counts.append(budget // held.kv_block)
        if counts[-1] < 1 or budget > free:
            cache = config.kv_cache_memory or -(-held.kv_block // KV_SHARE)
            raise CapacityError(
                f"Stage {stage} on {device.name} has {device.usable / 1e9:.3g} GB, but needs "
                f"{held.without_kv / 1e9:.3g} GB and a KV cache of at least {cache / 1e9:.2g} GB; "
                "use more devices, larger ones, or a smaller dtype."
            )
    longest = config.max_model_len or model.max_position
    return min(min(counts), config.max_sequences * -(-longest // config.block_size))
