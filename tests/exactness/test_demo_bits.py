"""The same bits through real processes: however the model is cut, batched, chunked or started.

Log-probabilities of the chosen token and of twenty alternatives are compared as floats, bit for
bit, and so are tokens that were drawn with a seed.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.reference import demo_prompt_ids

from ppinfer import PPInferEngine, RequestOutput, SamplingParams

FIXED = {"num_micro_batches": 1, "max_prefill_tokens": 1024}
"""Nothing to choose by measurement, which takes longer than the runs."""


def params(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=8, temperature=0.9, seed=seed, logprobs=20, ignore_eos=True)


def run(engine: PPInferEngine, indices: list[int], fillers: int = 0) -> dict[int, Any]:
    """Bits of each prompt's result; ``fillers`` others share the batch and are not looked at."""
    prompts = [demo_prompt_ids()[i] for i in indices] + [demo_prompt_ids()[5][:7]] * fillers
    chosen = [params(i) for i in indices] + [params(100 + i) for i in range(fillers)]
    results = engine.generate(prompts, chosen)
    return {i: bits(result) for i, result in zip(indices, results, strict=False)}


def bits(result: RequestOutput) -> Any:
    assert result.logprobs is not None
    return result.token_ids, [(entry.logprob, entry.top) for entry in result.logprobs]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_changes_a_bit(dtype: str) -> None:
    every = [0, 1, 3, 4, 7, 9, 13, 16, 21]
    alone = [0, 3, 13, 21]
    with PPInferEngine(
        "demo", dtype=dtype, pp_size=1, micro_batch_size=1, prefix_caching=False, **FIXED
    ) as engine:
        expected = run(engine, alone)
    with PPInferEngine(
        "demo", dtype=dtype, pp_size=2, num_micro_batches=1, micro_batch_size=32
    ) as engine:
        together = run(engine, every, fillers=32 - len(every))
        assert {i: together[i] for i in alone} == expected
        # Again: every prompt now starts behind the blocks that its first run left in the cache.
        assert run(engine, every) == together
        assert engine.report().cached_tokens > 100
    for settings in (
        {"pp_size": 3, "micro_batch_size": 8, "max_prefill_tokens": 64, "partition": (4, 7, 19)},
        {"pp_size": 4, "micro_batch_size": 5, "max_prefill_tokens": 16, "block_size": 32,
         "num_micro_batches": 4, "partition": "even"},
        {"pp_size": 1, "micro_batch_size": 8, "max_prefill_tokens": 7},
    ):  # fmt: skip
        with PPInferEngine("demo", dtype=dtype, **(FIXED | settings)) as engine:
            assert run(engine, every) == together
