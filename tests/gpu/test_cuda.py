"""The engine on a GPU: exact, whatever the company, over NCCL, and after a stage was lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model, random_ids, reference_logits, save_model

from ppinfer import PPInferEngine, RequestOutput, SamplingParams
from ppinfer.errors import StageError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LENGTHS = (5, 17, 64, 130, 1, 33, 200, 90)
NEW = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(
        "llama", hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, vocab_size=1000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [random_ids(length, seed, 1000) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def expected(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of transformers, on the CPU in fp32."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        full = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
            eos_token_id=[], pad_token_id=0,
        )  # fmt: skip
        found.append(full[0, len(prompt) :].tolist())
    return found


def greedy() -> SamplingParams:
    return SamplingParams(max_tokens=NEW, ignore_eos=True)


def bits(result: RequestOutput) -> Any:
    assert result.logprobs is not None
    return result.token_ids, [(entry.logprob, entry.top) for entry in result.logprobs]


def test_greedy_tokens_are_those_of_transformers(
    folder: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with PPInferEngine(str(folder), device="cuda", dtype="fp32") as engine:
        results = engine.generate(prompts, greedy())
    assert [result.token_ids for result in results] == expected


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Sliding windows, biases, and norms of queries and keys."""
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
    more = {"mistral": {"sliding_window": 40}, "qwen2": {}, "qwen3": {"head_dim": 32}}[family]
    model = make_model(family, **sizes, **more)
    prompts = [random_ids(length, length) for length in (3, 120)]
    with PPInferEngine(str(save_model(model, tmp_path)), device="cuda", dtype="fp32") as engine:
        results = engine.generate(prompts, greedy())
    for prompt, result in zip(prompts, results, strict=True):
        ids = [*prompt, *result.token_ids]
        chosen = reference_logits(model, ids).argmax(-1).tolist()
        assert result.token_ids == chosen[len(prompt) - 1 : -1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_company_and_chunks_change_no_bit(
    folder: Path, prompts: list[list[int]], dtype: str
) -> None:
    params = [
        SamplingParams(max_tokens=8, temperature=0.9, seed=i, logprobs=5, ignore_eos=True)
        for i in range(len(prompts))
    ]
    found = []
    for settings in (
        {"max_num_seqs": 1, "max_prefill_tokens": 512},
        {"max_num_seqs": 8, "max_prefill_tokens": 512},
        {"max_num_seqs": 8, "max_prefill_tokens": 16},
        {"max_num_seqs": 8, "max_prefill_tokens": 7, "block_size": 64},
    ):
        with PPInferEngine(str(folder), device="cuda", dtype=dtype, **settings) as engine:
            found.append([bits(result) for result in engine.generate(prompts, params)])
    assert all(each == found[0] for each in found[1:])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_token_is_as_likely_decoded_as_in_a_prompt(
    folder: Path, prompts: list[list[int]], dtype: str
) -> None:
    with PPInferEngine(str(folder), device="cuda", dtype=dtype, max_num_seqs=8) as engine:
        params = SamplingParams(max_tokens=NEW, logprobs=0, ignore_eos=True)
        decoded = engine.generate(prompts, params)
        whole = [prompt + result.token_ids for prompt, result in zip(prompts, decoded, strict=True)]
        scored = engine.generate(whole, SamplingParams(max_tokens=1, prompt_logprobs=0))
    for before, after in zip(decoded, scored, strict=True):
        assert before.logprobs is not None
        assert after.prompt_logprobs is not None
        expected = [entry.logprob for entry in before.logprobs]
        assert [entry.logprob for entry in after.prompt_logprobs[-NEW:] if entry] == expected


def test_recorded_steps_outlive_longer_contexts(tmp_path: Path) -> None:
    """Tables of positions grow with the longest context, and graphs still read the older ones."""
    model = make_model("llama", max_position_embeddings=4096)
    folder = save_model(model, tmp_path)
    with PPInferEngine(str(folder), device="cuda", dtype="fp32") as engine:
        short, long = random_ids(20), random_ids(2100)
        before = engine.generate([short], greedy())[0].token_ids
        for _ in range(3):
            engine.generate([long], greedy())
        assert engine.generate([short], greedy())[0].token_ids == before


@pytest.mark.parametrize(("stages", "comm"), [(2, "p2p"), (2, "broadcast"), (4, "broadcast")])
@pytest.mark.usefixtures("one_gpu_for_all")
def test_stages_over_nccl(
    folder: Path, prompts: list[list[int]], expected: list[list[int]], stages: int, comm: str
) -> None:
    with PPInferEngine(
        str(folder), pp_size=stages, device="cuda", dtype="fp32", comm=comm, timeout=60,
        kv_cache_memory="100MB",
    ) as engine:  # fmt: skip
        results = engine.generate(prompts, greedy())
    assert [result.token_ids for result in results] == expected


@pytest.mark.usefixtures("one_gpu_for_all")
def test_a_lost_stage_is_named(folder: Path, prompts: list[list[int]]) -> None:
    with PPInferEngine(
        str(folder), pp_size=2, device="cuda", dtype="fp32", timeout=60, kv_cache_memory="100MB"
    ) as engine:
        endless = SamplingParams(max_tokens=300, ignore_eos=True)
        stream = engine.stream(prompts, endless)
        next(iter(stream))
        os.kill(engine.stage_pids[1] or 0, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(StageError, match=r"[Ss]tage 1"):
            list(stream)
        assert time.monotonic() - started < 20
