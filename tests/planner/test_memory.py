"""What stages hold, and whether a model fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.modelled import CARD, MODEL, link

from ppinfer.config import EngineConfig
from ppinfer.errors import CapacityError
from ppinfer.planner.assemble import KV_SHARE, Assembled, assemble
from ppinfer.planner.cost import USUAL
from ppinfer.planner.hardware import Device
from ppinfer.planner.memory import WORKSPACE, activation_numbers, stage_memory, stage_parameters


def test_parameters_of_a_stage() -> None:
    first, inner, last = (stage_parameters(MODEL, layers) for layers in ((0, 3), (3, 6), (6, 8)))
    assert first == 3 * 4_000_000 + 4_096_000
    assert inner == 3 * 4_000_000
    assert last == 2 * 4_000_000 + 4_096_512
    assert first + inner + last == MODEL.total_parameters


def test_bytes_of_a_stage_by_hand() -> None:
    settings = {"max_step_tokens": 100, "max_sequences": 10, "block_size": 16}
    last = stage_memory(MODEL, (6, 8), "bf16", **settings)
    assert last.weights == 2 * (2 * 4_000_000 + 4_096_512)
    assert last.kv_block == 16 * 2 * 2 * 128 * 2  # tokens, keys and values, layers, size, bytes
    assert last.logits == 10 * 8000 * (2 + 4)  # as computed, and in fp32
    assert last.activations == 100 * 2 * activation_numbers(MODEL)
    assert last.without_kv == last.weights + last.logits + last.activations + WORKSPACE
    assert last.blocks_in(last.without_kv + 5 * last.kv_block - 1) == 4
    assert last.blocks_in(last.without_kv - 1) < 0
    inner = stage_memory(MODEL, (2, 4), "fp32", **settings)
    assert inner.logits == 0
    assert inner.weights == 4 * 2 * 4_000_000


def test_activations_of_a_token() -> None:
    """Layer parameters tell the width of the MLP."""
    inner = 1000
    attention = 2 * 512 * (512 + 128)
    model = replace(MODEL, layer_parameters=attention + 3 * 512 * inner + 2 * 512)
    assert activation_numbers(model) == 3 * 512 + 2 * 512 + 2 * 128 + 3 * inner


def build(*devices: Device, **settings) -> Assembled:
    config = EngineConfig(pp_size=len(devices), **{"micro_batch_size": 4, **settings})
    links = [link()] * (len(devices) - 1)
    return assemble(MODEL, devices, links, "bf16", config, context=200, efficiency=USUAL)


def test_the_poorest_stage_has_the_say() -> None:
    poor = replace(CARD, name="poor", usable=700_000_000)
    found = build(CARD, poor, micro_batch_size=128, max_prefill_tokens=128)
    free = [
        device.usable - held.without_kv
        for device, held in zip(found.devices, found.memory, strict=True)
    ]
    blocks = [
        int(KV_SHARE * left) // held.kv_block for left, held in zip(free, found.memory, strict=True)
    ]
    assert found.pipeline.num_blocks == min(blocks)
    assert blocks[1] < blocks[0] < 128 * 4096 // 16


def test_no_more_blocks_than_sequences_can_ever_use() -> None:
    assert build(CARD, max_model_len=100, block_size=16).pipeline.num_blocks == 4 * 7
    found = build(CARD, kv_cache_memory=10 * 16 * 8 * 2 * 128 * 2)
    assert found.pipeline.num_blocks == 10


def test_what_does_not_fit_is_refused_by_name() -> None:
    small = replace(CARD, name="small", usable=30_000_000)
    with pytest.raises(CapacityError, match="The model does not fit"):
        build(small, small)
    held = build(CARD, max_prefill_tokens=128).memory[0]
    tight = replace(CARD, name="tight", usable=held.without_kv + held.kv_block)
    with pytest.raises(
        CapacityError, match=r"Stage 0 on tight has \S+ GB, but needs \S+ GB and a KV cache of at"
    ):
        build(tight, max_prefill_tokens=128)
    enough = replace(tight, usable=held.without_kv + 2 * held.kv_block)
    assert build(enough, max_prefill_tokens=128).pipeline.num_blocks == 1


def test_a_kv_cache_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match=r"and a KV cache of at least 0\.5 GB"):
        build(CARD, kv_cache_memory=500_000_000)


def test_a_cut_leaves_room_for_more_than_weights() -> None:
    """Half of the weights would fit on the small device, but not what a step needs beside them."""
    half = 2 * MODEL.total_parameters // 2
    small = replace(CARD, name="small", usable=half + WORKSPACE - 5_000_000)
    first, last = (
        last - first for first, last in build(small, CARD, max_prefill_tokens=128).ranges
    )
    assert first < last


def test_equal_devices_share_layers_and_unequal_ones_do_not() -> None:
    assert [last - first for first, last in build(CARD, CARD).ranges] == [4, 4]
    fast = replace(CARD, name="fast", bandwidth=3 * CARD.bandwidth, peak={"bf16": 60e12})
    first, last = (last - first for first, last in build(CARD, fast).ranges)
    assert first < last
    assert first + last == 8
