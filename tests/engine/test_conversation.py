"""A conversation computes each turn once: the turns before come from the KV cache, to the bit."""

from __future__ import annotations

import pytest

from ppinfer import PPInferEngine, SamplingParams
from ppinfer.request import ChatMessage

pytestmark = pytest.mark.slow

BLOCK = 16


def test_a_turn_starts_behind_the_turns_before_it() -> None:
    params = SamplingParams(max_tokens=40, logprobs=5)
    with PPInferEngine("demo", pp_size=2, dtype="bf16") as engine:
        chat: list[ChatMessage] = [{"role": "user", "content": "Name three colours."}]
        (first,) = engine.generate(chat, params)
        assert engine.report().cached_tokens == 0
        chat += [
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "And three animals?"},
        ]
        (second,) = engine.generate(chat, params)
        before = len(first.prompt_token_ids) + len(first.token_ids)
        cached = engine.report().cached_tokens
        assert cached >= before - 2 * BLOCK, "the answer of the first turn was computed again"
    with PPInferEngine("demo", pp_size=2, dtype="bf16", prefix_caching=False) as engine:
        assert engine.generate(chat, params) == [second]
        assert engine.report().cached_tokens == 0
