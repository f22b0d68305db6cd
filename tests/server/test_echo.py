"""``echo`` with ``logprobs``: how likely a prompt is, as evaluation harnesses ask for it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from support.fake_async_engine import ANSWER, RunningServer, small_tokenizer
from support.small_tokenizers import train_sentencepiece

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.request import PromptTokenLogprobs
from ppinfer.server.logprobs import CompletionLogprobsMaker, TokenTexts

TEXT = "The quick — 今日は 🙂 fox"
IDS = small_tokenizer().encode(TEXT)
COUNT = len(IDS)


def check(choice: dict[str, Any], num_prompt: int, num_new: int) -> None:
    """All four lists fit each other and the text."""
    found = choice["logprobs"]
    lengths = {name: len(values) for name, values in found.items()}
    assert lengths == dict.fromkeys(
        ("tokens", "token_logprobs", "top_logprobs", "text_offset"), num_prompt + num_new
    )
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    expected = [-i / 8 for i in range(1, num_prompt)] + [-0.5] * num_new
    assert found["token_logprobs"][1:] == expected
    assert found["text_offset"][0] == 0
    assert found["text_offset"] == sorted(found["text_offset"])
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"].startswith(token, offset)
    for token, value, top in list(zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ))[1:]:  # fmt: skip
        assert top[token] == value
        assert len(top) in (2, 3)


@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_prompt_and_answer(server: RunningServer, prompt: Any, max_tokens: int) -> None:
    answer = server.complete(prompt, echo=True, logprobs=2, max_tokens=max_tokens)
    (choice,) = answer.json["choices"]
    check(choice, COUNT, max_tokens)
    assert choice["text"].startswith(TEXT)
    assert (choice["text"] == TEXT) == (max_tokens == 0)
    assert choice["finish_reason"] == "length"
    usage = {"prompt_tokens": COUNT, "completion_tokens": max_tokens}
    assert answer.json["usage"] == usage | {"total_tokens": COUNT + max_tokens}
    params = server.engine.calls[0].params
    assert (params.max_tokens, params.logprobs, params.prompt_logprobs) == (max_tokens, 2, 2)
    server.complete(prompt, logprobs=2)
    assert server.engine.calls[1].params.prompt_logprobs is None


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("prompts", [[TEXT, "Hi"], [IDS, small_tokenizer().encode("Hi")]])
def test_batches_and_choices(server: RunningServer, prompts: Any, max_tokens: int) -> None:
    fields = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    answer = server.complete(prompts, **fields).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    short = len(small_tokenizer().encode("Hi"))
    for choice, length in zip(answer["choices"], (COUNT, COUNT, short, short), strict=True):
        check(choice, length, max_tokens)
    assert answer["usage"]["prompt_tokens"] == COUNT + short
    joined = [
        {"text": "", "logprobs": {name: [] for name in answer["choices"][0]["logprobs"]}}
        for _ in range(4)
    ]
    for event in server.complete(prompts, **fields, stream=True).events:
        (choice,) = event["choices"]
        whole: Any = joined[choice["index"]]
        whole["text"] += choice["text"]
        for name, values in choice["logprobs"].items():
            whole["logprobs"][name] += values
    assert joined == [
        {"text": choice["text"], "logprobs": choice["logprobs"]} for choice in answer["choices"]
    ]


def test_special_tokens_that_are_in_the_text(server: RunningServer) -> None:
    ids = [*sorted(small_tokenizer().special_ids)[:1], *IDS]
    (choice,) = server.complete(ids, echo=True, logprobs=2, max_tokens=1).json["choices"]
    check(choice, COUNT + 1, 1)
    assert choice["text"].startswith("<|")
    assert choice["logprobs"]["text_offset"][1] == len(choice["logprobs"]["tokens"][0])


def test_what_a_tokenizer_adds_is_not_in_the_text() -> None:
    """A special token, and the blank before the first word."""
    tokenizer = Tokenizer(train_sentencepiece())
    ids = tokenizer.encode("The fox — 今日 fox", add_special_tokens=False)
    bos = 1
    maker = CompletionLogprobsMaker(TokenTexts(tokenizer), frozenset({bos}), "The fox — 今日 fox")
    entries = [None, *(PromptTokenLogprobs(token, -1.0, {}, False) for token in ids)]
    made = maker.make([], [bos, *ids], entries)
    assert (made.tokens[0], made.tokens[1][0]) == ("<s>", " ")
    assert made.text_offset[:2] == [0, 0]
    for token, offset in list(zip(made.tokens, made.text_offset, strict=True))[2:]:
        if not token.startswith("bytes:"):
            assert "The fox — 今日 fox".startswith(token, offset), (token, offset)


def test_one_token(server: RunningServer) -> None:
    (choice,) = server.complete([IDS[0]], echo=True, logprobs=0, max_tokens=0).json["choices"]
    assert choice["logprobs"] == {
        "tokens": ["The"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0],
    }  # fmt: skip


def test_a_prompt_that_fills_the_context(server: RunningServer) -> None:
    fields = {"echo": True, "logprobs": 0}
    assert server.complete([5] * 100, **fields, max_tokens=0).status == 200
    answer = server.complete([5] * 100, **fields, max_tokens=1)
    assert answer.error["code"] == "context_length_exceeded"
    answer = server.complete([5] * 101, **fields, max_tokens=0)
    assert answer.error["code"] == "context_length_exceeded"


def test_nothing_to_compute_without_an_echo(server: RunningServer) -> None:
    for fields in ({}, {"echo": False}, {"logprobs": 1}):
        answer = server.complete(max_tokens=0, **fields)
        assert (answer.status, answer.error["param"]) == (400, "max_tokens")
    answer = server.complete(echo=True, logprobs=21, max_tokens=0)
    assert answer.error["param"] == "logprobs"


def test_with_the_client(server: RunningServer) -> None:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="small", prompt=TEXT, echo=True, logprobs=2, max_tokens=99
        )
        assert answer.choices[0].text == TEXT + ANSWER
        found = answer.choices[0].logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert found.token_logprobs[0] is None
