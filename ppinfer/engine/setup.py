"""Decisions between the stages' first report and their first plan: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from ppinfer.config import EngineConfig
from ppinfer.engine.profile import SMALL_MODEL, shares_host
from ppinfer.errors import CapacityError, ConfigError
from ppinfer.messages import DeviceInfo, StageLoaded, StageReady
from ppinfer.models.config import ModelConfig
from ppinfer.planner import memory as planner_memory
from ppinfer.schedule.pace import Measured
from ppinfer.schedule.partition import LayerCosts, StageRange, partition_layers
from ppinfer.schedule.tuning import Tuning, tune, untuned

_CPU_SHARE, _GPU_SHARE = 0.5, 0.9
"""Part of a device's free memory that the KV cache may take unless it is told how much."""


def choose_devices(ready: Sequence[StageReady], wanted: str) -> list[DeviceInfo]:
    """Each stage's device: GPUs where every stage has one, unless ``wanted`` says otherwise.

    Raises:
        ConfigError: CUDA is wanted and a stage has no GPU.
    """
    gpus = [stage.devices[1] for stage in ready if len(stage.devices) > 1]
    if wanted == "cuda" and len(gpus) < len(ready):
        raise ConfigError(
            f'device="cuda" needs a GPU for each of the {len(ready)} stages, but {len(gpus)} were '
            'found; lower pp_size, or use device="cpu".'
        )
    if wanted != "cpu" and len(gpus) == len(ready):
        return gpus
    return [stage.devices[0] for stage in ready]


def choose_dtype(
    wanted: str, checkpoint: str, devices: Sequence[DeviceInfo]
) -> tuple[str, str | None]:
    """The arithmetic of all stages, and a note where it is not what was asked for.

    ``auto`` takes the checkpoint's type where every device has it, else fp32. fp16 on a CPU is
    computed in fp32: processors without native fp16 are ten times slower in it.

    Raises:
        ConfigError: a device cannot compute in the wanted type.
    """
    name = checkpoint if wanted == "auto" else wanted
    lacking = [device for device in devices if name not in device.dtypes]
    if lacking and wanted == "auto":
        return "fp32", f"{name} is not native to {lacking[0].description}; computing in fp32."
    if lacking:
        raise ConfigError(
            f"{lacking[0].name} ({lacking[0].description}) cannot compute in {name}; use one of "
            f"{', '.join(lacking[0].dtypes)}."
        )
    if name == "fp16" and any(device.name == "cpu" for device in devices):
        return "fp32", "fp16 on a CPU is stored and computed in fp32."
    return name, None


def choose_comm(
    wanted: str, num_stages: int, devices: Sequence[DeviceInfo], shares_memory: bool
) -> str:
    """How hidden states travel.

    ``auto`` is shared memory where all stages compute on one host's CPU, else point-to-point at two
    stages and broadcast above, as in the system that this one re-creates.

    Raises:
        ConfigError: shared memory is wanted and cannot be had.
    """
    has_shm = shares_memory and all(device.name == "cpu" for device in devices)
    if wanted == "shm" and not has_shm:
        raise ConfigError(
            'comm="shm" is for stages of one host that the engine starts itself and that compute '
            "on the CPU; use p2p, broadcast or auto."
        )
    if wanted != "auto":
        return wanted
    if has_shm:
        return "shm"
    return "p2p" if num_stages <= 2 else "broadcast"


def receives_ahead(config: EngineConfig, devices: Sequence[DeviceInfo]) -> int:
    """How many receives of hidden states stages post before they need them.

    On a GPU none: a receive of NCCL runs there until its data comes, and much that CUDA does for
    the first time (to load a kernel, to get memory) waits for all that runs. The data may depend on
    the very step that would wait.
    """
    return config.recv_ahead if all(device.name == "cpu" for device in devices) else 0


def count_blocks(
    loaded: Sequence[StageLoaded],
    devices: Sequence[DeviceInfo],
    config: EngineConfig,
    max_model_len: int,
) -> int:
    """KV blocks of the pool: every stage can hold them, so the poorest decides.

    Without ``kv_cache_memory`` the pool is as large as all slots can ever use, if that is free.

    Raises:
        CapacityError: not even one block fits, or more was asked for than is free.
    """
    budgets = []
    for stage, device in zip(loaded, devices, strict=True):
        share = _CPU_SHARE if device.name == "cpu" else _GPU_SHARE
        budgets.append(config.kv_cache_memory or int(stage.free_bytes * share))
        if budgets[-1] > stage.free_bytes:
            raise CapacityError(
                f"kv_cache_memory is {config.kv_cache_memory:,} bytes, but stage {stage.stage} has "
                f"{stage.free_bytes:,} free; lower it."
            )
    counts = [budget // stage.block_bytes for budget, stage in zip(budgets, loaded, strict=True)]
    poorest = min(range(len(counts)), key=counts.__getitem__)
    if counts[poorest] < 1:
        raise CapacityError(
            f"Stage {poorest} has {budgets[poorest]:,} bytes for its KV cache, but one block of "
            f"{config.block_size} tokens takes {loaded[poorest].block_bytes:,}; raise "
            "kv_cache_memory, or use more stages."
        )
    if config.kv_cache_memory is not None:
        return counts[poorest]
    return min(counts[poorest], config.max_sequences * -(-max_model_len // config.block_size))


def cut_and_tune(
    measured: Measured | None,
    model: ModelConfig,
    dtype: str,
    ready: Sequence[StageReady],
    devices: Sequence[DeviceInfo],
    config: EngineConfig,
) -> tuple[tuple[StageRange, ...], Tuning]:
    """Each stage's layers, and how many micro-batches run: by measurement, else by shapes.

    Raises:
        ConfigError, CapacityError: see ``partition_layers``.
    """
    costs = layer_costs(model, dtype)
    limits = [device.free_bytes for device in devices]
    if measured is not None:
        return tune(measured, costs, config, limits)
    ranges = partition_layers(costs, config.pp_size, config.partition, limits)
    threads: tuple[int, ...] = (0,)
    if model.total_parameters >= SMALL_MODEL and shares_host(ready, devices):
        share = ready[0].threads
        threads = (ready[0].cores if config.threads is None else share, share)
    return ranges, untuned(config, threads)


def layer_costs(model: ModelConfig, dtype: str) -> LayerCosts:
    """What the parts of a model cost a step, as the planner estimates it."""
    return planner_memory.layer_costs(model.shape(), dtype)
