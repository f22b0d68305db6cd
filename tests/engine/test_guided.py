"""Grammars over real stage processes and a tiny model that would write anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_model, random_ids, save_model
from support.small_tokenizers import train_byte_level

from ppinfer import AsyncPPInferEngine, Grammar, PPInferEngine, RequestError, SamplingParams

pytestmark = pytest.mark.slow

EOS = 2
PERSON = Grammar.json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colour": {"enum": ["red", "green"]},
        },
        "required": ["name", "age", "colour"],
        "additionalProperties": False,
    }
)
EXPLODING, LONG = Grammar.regex("x{1000000}"), Grammar.regex("[a-z]{2000}")
FREE = SamplingParams(max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=120, temperature=1.0, seed=5, grammar=PERSON)
GREEDY = SamplingParams(max_tokens=120, grammar=PERSON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: dict[str, Any] = {"vocab_size": 512, "eos_token_id": EOS, "num_hidden_layers": 4}
    folder = save_model(make_model("llama", **settings), tmp_path_factory.mktemp("model"))
    train_byte_level().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[PPInferEngine]:
    with PPInferEngine(folder, pp_size=2, micro_batch_size=6) as engine:
        yield engine


def check_person(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["name", "age", "colour"]
    assert 0 <= found["age"] <= 150
    assert found["colour"] in ("red", "green")


PROMPTS = [random_ids(length, length, 500) for length in (5, 40, 3, 129, 7, 64, 2, 11)]
MIXED = [([9, 8, 7], SAMPLED), *((prompt, FREE) for prompt in PROMPTS), ([9, 8, 7], GREEDY)]


@pytest.fixture(scope="module")
def alone(engine: PPInferEngine) -> list[list[int]]:
    """The tokens of ``MIXED``, each computed without the others."""
    outputs = [engine.generate([prompt], params)[0] for prompt, params in MIXED]
    for output in (outputs[0], outputs[-1]):
        check_person(output.text)
        assert output.finish_reason == "stop"
    return [output.token_ids for output in outputs]


def test_the_same_tokens_alone_and_beside_others(
    engine: PPInferEngine, alone: list[list[int]]
) -> None:
    prompts, params = zip(*MIXED, strict=True)
    assert [output.token_ids for output in engine.generate(list(prompts), list(params))] == alone


def test_one_that_fails_on_its_way_fails_alone(engine: PPInferEngine) -> None:
    (expected,) = engine.generate([5, 6], FREE)
    with engine.stream([5, 6], FREE) as other:
        with pytest.raises(RequestError, match="too many expressions") as caught:
            engine.generate([1], SamplingParams(max_tokens=400, grammar=EXPLODING))
        assert caught.value.param == "grammar"
        assert [token for delta in other for token in delta.token_ids] == expected.token_ids
    assert not engine._driver._manager.has_unfinished


@pytest.mark.parametrize(
    ("grammar", "params", "texts", "reason"),
    [
        (Grammar.regex("[0-9]{3}"), {}, None, "stop"),
        (Grammar.regex("yes|no"), {"ignore_eos": True, "temperature": 1.0}, ("yes", "no"), "stop"),
        (Grammar.regex("(yes|no)"), {"min_tokens": 9}, ("yes", "no"), "stop"),
        (Grammar.regex("a{50,60}"), {"max_tokens": 4}, None, "length"),
        (Grammar.regex("abc"), {"max_tokens": 3, "logit_bias": {1: 100.0}}, ("abc",), "stop"),
        (Grammar.regex("abc"), {"repetition_penalty": 9.0}, ("abc",), "stop"),
        (Grammar.regex("abcd"), {"stop": "c"}, ("ab",), "stop"),
        (Grammar.regex("a*"), {"stop_token_ids": (7,), "logit_bias": {7: 100.0}}, ("",), "stop"),
    ],
)  # fmt: skip
def test_with_other_settings(
    engine: PPInferEngine,
    grammar: Grammar,
    params: dict[str, Any],
    texts: tuple[str, ...] | None,
    reason: str,
) -> None:
    (output,) = engine.generate([3, 4], SamplingParams(grammar=grammar, **params))
    assert output.finish_reason == reason
    assert texts is None or output.text in texts


def test_logprobs_are_of_the_unchanged_logits(engine: PPInferEngine) -> None:
    params = SamplingParams(max_tokens=1, logprobs=1)
    (plain,) = engine.generate([3, 4], params)
    (held,) = engine.generate(
        [3, 4], SamplingParams(max_tokens=1, logprobs=1, grammar=Grammar.regex("[0-9]{9}"))
    )
    assert plain.logprobs is not None
    assert held.logprobs is not None
    assert held.logprobs[0].top == plain.logprobs[0].top
    assert held.logprobs[0].logprob < plain.logprobs[0].logprob


def test_a_grammar_that_is_refused_costs_nothing(engine: PPInferEngine) -> None:
    for grammar in (Grammar.regex("("), Grammar.json_schema({"$ref": "#"})):
        with pytest.raises(RequestError) as caught:
            engine.generate([[1], [2]], [FREE, SamplingParams(grammar=grammar)])
        assert caught.value.param == "grammar"
    assert engine.generate([1], FREE)[0].finish_reason == "length"


def test_of_the_asynchronous_engine(folder: Path, alone: list[list[int]]) -> None:
    """Cut otherwise, and compiled beside the driver: what is refused, or aborted meanwhile, leaves
    nothing behind."""

    async def tokens(of: AsyncPPInferEngine, prompt: list[int], params: SamplingParams) -> Any:
        return [token async for delta in of.stream(prompt, params) for token in delta.token_ids]

    async def run() -> None:
        async with await AsyncPPInferEngine.create(folder, pp_size=1) as engine:
            for grammar in (Grammar.regex("("), Grammar.json_schema({"type": 5})):
                with pytest.raises(RequestError) as caught:
                    await tokens(engine, [1], SamplingParams(grammar=grammar))
                assert caught.value.param == "grammar"
            for _ in range(3):  # at once after its begin
                engine.stream([1, 2], SamplingParams(max_tokens=400, grammar=LONG)).cancel()
            found = await asyncio.gather(*(tokens(engine, *pair) for pair in MIXED))
            assert found == alone
            state = await engine.state()
            assert (state.running, state.waiting) == (0, 0)

    asyncio.run(asyncio.wait_for(run(), 120))
