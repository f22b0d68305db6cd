"""The same bits through real processes: however the model is cut, batched, chunked or started.

Log-probabilities of the chosen token and of twenty alternatives are compared as floats, bit for
bit, and so are tokens that were drawn with a seed.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.reference import demo_prompt_ids

from ppinfer import PPInferEngine, RequestOutput, SamplingParams

PARAMS = [
    SamplingParams(max_tokens=8, temperature=0.9, seed=index, logprobs=20, ignore_eos=True)
    for index in range(26)
]


def run(engine: PPInferEngine, indices: list[int]) -> dict[int, Any]:
    prompts = demo_prompt_ids()
    results = engine.generate([prompts[i] for i in indices], [PARAMS[i] for i in indices])
    return {i: bits(result) for i, result in zip(indices, results, strict=True)}


def bits(result: RequestOutput) -> Any:
    assert result.logprobs is not None
    return result.token_ids, [(entry.logprob, entry.top) for entry in result.logprobs]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_changes_a_bit(dtype: str) -> None:
    every = [0, 1, 3, 4, 7, 9, 13, 15, 16, 18, 20, 21, 22, 25]
    alone = [0, 3, 13, 20]
    with PPInferEngine(
        "demo", dtype=dtype, pp_size=1, micro_batch_size=1, prefix_caching=False
    ) as engine:
        expected = run(engine, alone)
    with PPInferEngine("demo", dtype=dtype, pp_size=2, micro_batch_size=32) as engine:
        together = run(engine, every)
        assert {i: together[i] for i in alone} == expected
        # Again: every prompt now starts behind the blocks that its first run left in the cache.
        assert run(engine, every) == together
    for settings in (
        {"pp_size": 3, "micro_batch_size": 8, "max_prefill_tokens": 64, "comm": "p2p"},
        {"pp_size": 4, "micro_batch_size": 5, "max_prefill_tokens": 16, "block_size": 32},
        {"pp_size": 1, "micro_batch_size": 8, "max_prefill_tokens": 7, "partition": "even"},
    ):
        with PPInferEngine("demo", dtype=dtype, **settings) as engine:
            assert run(engine, every) == together
