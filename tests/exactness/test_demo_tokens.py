"""Greedy fp32 tokens of the demo model equal those of ``transformers``, through real processes.

A dense sample: every pipeline size, kind of partition, micro-batch size, chunk size and transport
occurs; where sequences run one by one, with some of the prompts. The full grid is ``grid.py`` in
this folder; its result is in ``docs/results``.
"""

from __future__ import annotations

from typing import Any

import pytest
from support import choices
from support.reference import (
    NEW_TOKENS,
    demo_prompt_ids,
    follows,
    greedy,
    likelihoods,
    stored_likelihoods,
    stored_tokens,
)

from ppinfer import PPInferEngine, SamplingParams

SAMPLE: list[dict[str, Any]] = [
    {"pp_size": 1, "micro_batch_size": 8},
    {"pp_size": 2, "partition": "auto", "micro_batch_size": 1, "max_prefill_tokens": 33},
    {"pp_size": 2, "partition": (3, 27), "micro_batch_size": 3, "comm": "broadcast"},
    {"pp_size": 3, "partition": "even", "micro_batch_size": 8, "max_prefill_tokens": 64,
     "comm": "p2p", "num_micro_batches": 5},
    {"pp_size": 4, "partition": "auto", "micro_batch_size": 2, "max_prefill_tokens": 16},
]  # fmt: skip

LONGEST = 200
"""Tokens of a prompt that is computed anew; there are a few of several hundred."""


@pytest.mark.slow
@pytest.mark.xdist_group("transformers")
def test_the_stored_tokens_are_those_of_transformers() -> None:
    tokens = stored_tokens()
    assert len(tokens) == len(demo_prompt_ids()) >= 24
    assert all(len(row) == NEW_TOKENS for row in tokens)
    for prompt, row in zip(demo_prompt_ids(), tokens, strict=True):
        if len(prompt) <= LONGEST:
            assert follows(prompt, row) == row
    assert greedy([demo_prompt_ids()[9]]) == [tokens[9]]


@pytest.mark.slow
@pytest.mark.xdist_group("transformers")
def test_the_stored_likelihoods_are_those_of_transformers() -> None:
    stored = stored_likelihoods()
    assert len(stored) == len(choices.texts())
    for found, expected in zip(likelihoods(choices.texts()[4:9]), stored[4:9], strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert found.is_greedy == expected.is_greedy


@pytest.mark.slow
@pytest.mark.parametrize("settings", SAMPLE, ids=lambda s: f"pp{s['pp_size']}")
def test_tokens_equal_those_of_transformers(settings: dict[str, Any]) -> None:
    expected = stored_tokens()
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    indices = range(0, len(expected), 1 if settings["micro_batch_size"] > 1 else 3)
    with PPInferEngine("demo", dtype="fp32", **settings) as engine:
        results = engine.generate([demo_prompt_ids()[i] for i in indices], params)
    assert [r.token_ids for r in results] == [expected[i] for i in indices]
