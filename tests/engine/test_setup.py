"""Decisions of the start-up, as pure functions: also for devices that this machine lacks."""

from __future__ import annotations

import pytest

from ppinfer.config import EngineConfig
from ppinfer.engine.setup import (
    choose_comm,
    choose_devices,
    choose_dtype,
    count_blocks,
    layer_costs,
    receives_ahead,
)
from ppinfer.errors import CapacityError, ConfigError
from ppinfer.messages import DeviceInfo, StageLoaded, StageReady
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy
from ppinfer.schedule.partition import partition_layers

CPU = DeviceInfo("cpu", "a processor", 10_000_000, ("fp32", "fp16", "bf16"))
OLD_CPU = DeviceInfo("cpu", "an old processor", 10_000_000, ("fp32", "fp16"))


def gpu(index: int, *dtypes: str) -> DeviceInfo:
    return DeviceInfo(f"cuda:{index}", "a GPU", 20_000_000, dtypes or ("fp32", "fp16", "bf16"))


def ready(*devices: tuple[DeviceInfo, ...]) -> list[StageReady]:
    return [StageReady(i, 100 + i, "0", listed, 1.0) for i, listed in enumerate(devices)]


def loaded(free: int, block: int, stage: int = 0) -> StageLoaded:
    return StageLoaded(stage, 1, 1, free, block, 0.0, 0.0)


def test_gpus_are_used_where_every_stage_has_one() -> None:
    both = ready((CPU, gpu(0)), (CPU, gpu(1)))
    assert [d.name for d in choose_devices(both, "auto")] == ["cuda:0", "cuda:1"]
    assert [d.name for d in choose_devices(both, "cpu")] == ["cpu", "cpu"]
    one = ready((CPU, gpu(0)), (CPU,))
    assert [d.name for d in choose_devices(one, "auto")] == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match="needs a GPU for each of the 2 stages, but 1 were"):
        choose_devices(one, "cuda")


def test_auto_comm_is_shared_memory_on_one_host_and_the_original_rule_elsewhere() -> None:
    def auto(count: int, *, device: DeviceInfo = CPU, shared: bool = False) -> str:
        return choose_comm("auto", count, [device] * count, shared)

    assert [auto(n) for n in (1, 2, 3, 4)] == ["p2p", "p2p", "broadcast", "broadcast"]
    assert [auto(n, shared=True) for n in (1, 2, 4)] == ["shm"] * 3
    assert auto(2, device=gpu(0), shared=True) == "p2p"
    assert choose_comm("broadcast", 2, [CPU] * 2, True) == "broadcast"
    for devices, shared in (([CPU] * 2, False), ([CPU, gpu(1)], True)):
        with pytest.raises(ConfigError, match='comm="shm" is for stages of one host'):
            choose_comm("shm", 2, devices, shared)


def test_no_receive_runs_on_a_gpu_before_it_is_needed() -> None:
    config = EngineConfig(recv_ahead=5)
    assert receives_ahead(config, [CPU, CPU]) == 5
    assert receives_ahead(config, [gpu(0), gpu(1)]) == 0


def test_auto_dtype_is_the_checkpoints_where_every_device_has_it() -> None:
    assert choose_dtype("auto", "bf16", [CPU, CPU]) == ("bf16", None)
    name, note = choose_dtype("auto", "bf16", [CPU, OLD_CPU])
    assert name == "fp32"
    assert note is not None
    assert "an old processor" in note


def test_fp16_on_a_cpu_is_fp32_and_said() -> None:
    name, note = choose_dtype("fp16", "bf16", [CPU])
    assert name == "fp32"
    assert note is not None
    assert "fp16" in note
    assert choose_dtype("auto", "fp16", [CPU])[0] == "fp32"
    assert choose_dtype("fp16", "bf16", [gpu(0)]) == ("fp16", None)


def test_a_dtype_the_device_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"an old processor\) cannot compute in bf16; use"):
        choose_dtype("bf16", "fp32", [CPU, OLD_CPU])
    with pytest.raises(ConfigError, match=r"cuda:0 .* cannot compute in bf16"):
        choose_dtype("bf16", "fp32", [gpu(0, "fp32", "fp16")])


def test_the_poorest_stage_decides_the_size_of_the_pool() -> None:
    config = EngineConfig(pp_size=2, kv_cache_memory=1000)
    assert count_blocks([loaded(9999, 10), loaded(9999, 40, 1)], [CPU] * 2, config, 512) == 25
    config = EngineConfig(pp_size=2, micro_batch_size=100)
    assert count_blocks([loaded(5000, 10), loaded(2000, 10, 1)], [CPU] * 2, config, 512) == 100


def test_the_pool_is_no_larger_than_all_slots_can_use() -> None:
    config = EngineConfig(micro_batch_size=2, num_micro_batches=3, block_size=16)
    assert count_blocks([loaded(10**9, 10)], [CPU], config, 100) == 2 * 3 * 7


def test_more_than_is_free_is_refused() -> None:
    config = EngineConfig(pp_size=2, kv_cache_memory=3000)
    with pytest.raises(CapacityError, match="3,000 bytes, but stage 1 has 2,000 free"):
        count_blocks([loaded(9999, 10), loaded(2000, 10, 1)], [CPU] * 2, config, 512)


def test_a_pool_without_a_block_is_refused() -> None:
    config = EngineConfig(pp_size=2, kv_cache_memory=30)
    with pytest.raises(CapacityError, match="Stage 1 has 30 bytes"):
        count_blocks([loaded(100, 10), loaded(100, 40, 1)], [CPU] * 2, config, 512)


def test_the_head_counts_where_layers_are_shared_out() -> None:
    """The demo's shape: its head costs eight layers, so the last stage gets eight fewer."""
    model = LlamaForCausalLMPipelinePolicy().model_config(
        {
            "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
            "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30,
            "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        }
    )  # fmt: skip
    costs = layer_costs(model, "bf16")
    assert partition_layers(costs, 2) == ((0, 19), (19, 30))
    assert sum(costs.layer_bytes) == 2 * 30 * model.layer_parameters
