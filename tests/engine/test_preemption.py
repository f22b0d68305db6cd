"""A KV cache that is too small for all: sequences give way and are computed again, same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_model, random_ids, save_model

from ppinfer import PPInferEngine, SamplingParams

pytestmark = pytest.mark.slow

# A block of 16 tokens of the tiny model's largest stage has 3 layers of 2 heads of 10 in fp32.
BLOCK_BYTES = 16 * 3 * 2 * 2 * 10 * 4

SETTINGS = [
    SamplingParams(max_tokens=90, ignore_eos=True),
    SamplingParams(max_tokens=70, ignore_eos=True, temperature=0.9, seed=7),
    SamplingParams(max_tokens=80, ignore_eos=True, frequency_penalty=0.6, repetition_penalty=1.2),
    SamplingParams(max_tokens=60, ignore_eos=True, temperature=1.1, seed=8, presence_penalty=1.5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model("llama", num_hidden_layers=5, max_position_embeddings=512)
    return save_model(model, tmp_path_factory.mktemp("model"))


def results(folder: Path, **settings: Any) -> tuple[list[tuple[list[int], list[float]]], int]:
    """Tokens and log-probabilities of 12 requests, and how often one gave way."""
    prompts = [random_ids(5 + 9 * i % 40, seed=i) for i in range(12)]
    params = [SamplingParams(**_logprobs(SETTINGS[i % 4])) for i in range(12)]
    with PPInferEngine(folder, pp_size=2, micro_batch_size=4, **settings) as engine:
        manager = engine._driver._manager
        manager.memory.lengths.least = 0
        manager.memory.lengths.expected = 8
        outputs = engine.generate(prompts, params)
        assert manager.pool.num_used == 0
        assert manager.memory.room == manager.pool.num_blocks
        return [
            (output.token_ids, [entry.logprob for entry in output.logprobs or ()])
            for output in outputs
        ], manager.num_preemptions


def _logprobs(params: SamplingParams) -> dict[str, Any]:
    values = {name: getattr(params, name) for name in params.__struct_fields__}
    return values | {"logprobs": 0}


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_tokens_and_bits_are_those_of_a_run_with_room_for_all(
    folder: Path, prefix_caching: bool
) -> None:
    roomy, none = results(folder)
    tight, some = results(folder, kv_cache_memory=14 * BLOCK_BYTES, prefix_caching=prefix_caching)
    assert none == 0
    assert some >= 3
    assert tight == roomy
