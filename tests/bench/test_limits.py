"""The physical limit, the ceiling of the kernels, and estimates made from them."""

from __future__ import annotations

import math

import msgspec
import pytest

from ppinfer.bench.cases import Shape
from ppinfer.bench.limits import (
    CHUNKS,
    Arrangement,
    Rates,
    ceiling_seconds,
    physical_seconds,
    rows_to_measure,
    share_of,
)
from ppinfer.bench.measure import estimate_seconds, needed_bytes, weight_bytes
from ppinfer.bench.named import CONFIGS
from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy

TOY = LlamaForCausalLMPipelinePolicy().model_config(CONFIGS["toy"])
LLAMA_7B = LlamaForCausalLMPipelinePolicy().model_config(CONFIGS["llama-7b"])
ENDLESS = 1e30


def test_named_models_have_the_sizes_of_their_names() -> None:
    assert LLAMA_7B.total_parameters == 6_738_415_616
    config = LlamaForCausalLMPipelinePolicy().model_config(CONFIGS["llama-13b"])
    assert config.total_parameters == 13_015_864_320


def test_by_bytes_each_step_reads_every_weight_once() -> None:
    weights = TOY.num_layers * TOY.layer_parameters + TOY.head_parameters
    kv = 3 * TOY.kv_bytes_per_token(TOY.num_layers, 2)
    expected = 4 * weights * 2 + kv * (11 + 12 + 13)  # one prefill, three decode steps
    seconds = physical_seconds(TOY, Shape(3, 10, 4), 2, Rates(1.0, ENDLESS))
    assert seconds == pytest.approx(expected)


def test_by_operations_each_row_costs_two_a_weight_and_its_attention() -> None:
    layers, head = TOY.num_layers * TOY.layer_parameters, TOY.head_parameters
    pairs = TOY.num_layers * (sum(range(1, 11)) + 11 + 12 + 13)
    expected = 3 * (2 * layers * 13 + 2 * head * 4 + 4 * TOY.q_size * pairs)
    seconds = physical_seconds(TOY, Shape(3, 10, 4), 2, Rates(ENDLESS, 1.0))
    assert seconds == pytest.approx(expected)


def test_a_window_bounds_what_a_token_sees() -> None:
    windowed: ModelConfig = msgspec.structs.replace(TOY, windows=(2, None, None, None))
    shape, rates = Shape(1, 10, 4), Rates(1.0, ENDLESS)
    less = physical_seconds(TOY, shape, 2, rates) - physical_seconds(windowed, shape, 2, rates)
    assert less == pytest.approx(2 * TOY.kv_size * 2 * (9 + 10 + 11))


def test_the_best_arrangement_counts() -> None:
    rates, shape = Rates(ENDLESS, ENDLESS), Shape(8, 64, 5)
    whole = Arrangement(1, {8: 2.0, 512: 50.0}, {8: 1.0})
    parted = Arrangement(2, {4: 1.5, 512: 80.0}, {4: 0.5})
    seconds = ceiling_seconds(TOY, shape, 2, rates, [whole, parted])
    assert seconds == pytest.approx(8 * 64 * 80 / 1024 + 0.5 + 4 * 2.0)
    alone = ceiling_seconds(TOY, shape, 2, rates, [whole])
    assert alone == pytest.approx(50.0 + 1.0 + 4 * 3.0)


def test_fewer_rows_than_teams_are_left_to_all_cores() -> None:
    assert share_of(1, 2) is None
    assert share_of(3, 2) == 2
    assert Arrangement(2, {1: 1.0}, {1: 1.0}).step(1) == math.inf
    shapes = [Shape(1, 128, 64), Shape(32, 128, 64)]
    assert rows_to_measure(shapes, 2) == [16, *CHUNKS]
    assert rows_to_measure(shapes, 1) == [1, 32, *CHUNKS]
    assert rows_to_measure([Shape(1, 8, 4)], 1) == [1, CHUNKS[0]]


def test_a_model_that_is_too_large_is_known_beforehand() -> None:
    rates = Rates(40e9, 1e12)
    assert estimate_seconds(LLAMA_7B, "bf16", Shape(1, 128, 64), rates, 4) > 120
    assert estimate_seconds(TOY, "bf16", Shape(32, 128, 64), rates, 4) < 1
    assert weight_bytes(LLAMA_7B, "fp32") == 4 * LLAMA_7B.total_parameters
    assert needed_bytes(LLAMA_7B, "bf16", 2, 1000) > needed_bytes(LLAMA_7B, "bf16", 0, 1000)
