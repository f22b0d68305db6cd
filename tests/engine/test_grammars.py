"""Grammars compiled with llguidance, and outputs drawn at random from what they allow."""

from __future__ import annotations

import json
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.small_tokenizers import train_byte_level, train_sentencepiece
from tokenizers import AddedToken

from ppinfer.engine import grammars as grammars_module
from ppinfer.engine.grammars import Grammars, Latecomers
from ppinfer.engine.live import LiveRequest
from ppinfer.engine.masks import Masks
from ppinfer.engine.prompts import Limits
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams


@pytest.fixture
def masks() -> Iterator[Masks]:
    made = Masks()
    yield made
    made.close()


Make = Callable[[Tokenizer], Grammars]


@pytest.fixture
def make(masks: Masks) -> Make:
    def made(tokenizer: Tokenizer) -> Grammars:
        limits = Limits(
            vocab_size=tokenizer.vocab_size + 3, eos_token_ids=tuple(tokenizer.eos_token_ids)
        )
        return Grammars(tokenizer, limits, masks)

    return made


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer(train_byte_level(), special_tokens={"eos_token": "<|im_end|>"})


def request(grammar: Grammar, tokenizer: Tokenizer, **params: Any) -> Request:
    chosen = SamplingParams(grammar=grammar, **params)
    return Request(0, (1,), chosen, tokenizer.eos_token_ids)


def tokens_of(mask: bytes) -> list[int]:
    return [i for i in range(8 * len(mask)) if mask[i >> 3] >> (i & 7) & 1]


def draw(
    grammars: Grammars, tokenizer: Tokenizer, masks: Masks, grammar: Grammar, seed: int
) -> str:
    """A random output: a token that ends it is taken as soon as there is one."""
    constraint = grammars.constrain(request(grammar, tokenizer)).constraint
    assert constraint is not None
    rng, tokens = random.Random(seed), []
    for _ in range(3000):
        masks.settle(lambda: None)
        while constraint.mask is None:
            assert not list(masks.failures())
            time.sleep(0.001)
        allowed = tokens_of(constraint.mask)
        if not tokenizer.eos_token_ids.isdisjoint(allowed):
            return tokenizer.decode(tokens, skip_special_tokens=False)
        tokens.append(rng.choice(allowed))
        if constraint.accept(tokens[-1]):
            return tokenizer.decode(tokens, skip_special_tokens=False)
    raise AssertionError("it does not end")


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "grün"]}, "maxItems": 2},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "colours", "home"],
    "additionalProperties": False,
}
LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}

EXPLODING = {
    "allOf": [
        {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(4)]}
        for i in range(8)
    ]
}


def check_person(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["name", "age", "colours", "home"]
    assert isinstance(found["name"], str)
    assert len(found["name"]) <= 8
    assert type(found["age"]) is int
    assert 0 <= found["age"] <= 150
    assert set(found["colours"]) <= {"red", "grün"}
    assert re.fullmatch("[0-9]{5}", found["home"]["zip"])


def check_list(text: str) -> None:
    node = json.loads(text)
    while node is not None:
        assert set(node) == {"value", "next"}
        node = node["next"]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_random_outputs_fit(make: Make, masks: Masks, small: Tokenizer, kind: str) -> None:
    tokenizer = small
    if kind == "sentencepiece":
        tokenizer = Tokenizer(train_sentencepiece(), special_tokens={"eos_token": "</s>"})
    grammars = make(tokenizer)
    for seed in range(4):
        check_person(draw(grammars, tokenizer, masks, Grammar.json_schema(PERSON), seed))
        check_list(draw(grammars, tokenizer, masks, Grammar.json_schema(LIST), seed))
        text = draw(grammars, tokenizer, masks, Grammar.regex("(ab|é🙂){3}[^a-z]"), seed)
        assert re.fullmatch("(ab|é🙂){3}[^a-z]", text)
        text = draw(grammars, tokenizer, masks, Grammar.lark('start: "(" start ")" | "x"'), seed)
        assert re.fullmatch(r"\(*x\)*", text)


def test_demo_tokenizer(demo: Tokenizer, make: Make, masks: Masks) -> None:
    grammars = make(demo)
    check_person(draw(grammars, demo, masks, Grammar.json_schema(PERSON), 1))
    first = grammars.constrain(request(Grammar.json_object(), demo)).constraint
    assert first is not None
    assert first.mask is not None
    assert len(first.mask) == (demo.vocab_size + 3 + 7) // 8
    assert {demo.token_text(token)[0] for token in tokens_of(first.mask)} == {"{"}


def test_the_beginnings_of_requests_are_apart(make: Make, masks: Masks, small: Tokenizer) -> None:
    """They share what was compiled, and nothing of what was drawn."""
    grammars = make(small)
    one, two = (grammars.constrain(request(Grammar.regex("[0-9]b"), small)) for _ in range(2))
    assert one.constraint is not None
    assert two.constraint is not None
    before = two.constraint.mask
    assert not one.constraint.accept(small.encode("5")[0])
    masks.settle(lambda: None)
    assert two.constraint.mask == before == grammars.constrain(one).constraint.mask  # type: ignore[union-attr]


def test_added_tokens_are_no_letters(make: Make, masks: Masks) -> None:
    backend = train_byte_level()
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer = Tokenizer(backend, special_tokens={"eos_token": "<|im_end|>"})
    token = tokenizer.token_id("<tool_call>")
    grammar = Grammar.lark(f'start: <[{token}]> "x"')
    assert draw(make(tokenizer), tokenizer, masks, grammar, 0) == "<tool_call>x"


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar.regex("("), "unclosed group"),
        (Grammar.json_schema(EXPLODING), "too large"),
        (Grammar.regex("a(?=b)"), "look-ahead"),
        (Grammar.lark("start: nothing"), "unknown name"),
        (Grammar.lark(""), "followed"),
        (Grammar.json_schema({"$ref": "#"}), "nothing fits it"),
        (Grammar.json_schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "fits"),
        (Grammar.json_schema({"$ref": "http://example.com/x"}), "not present|retriev"),
        (Grammar.json_schema({"type": "strin"}), "Invalid type"),
        (Grammar.json_schema({"not": {"type": "null"}}), "not"),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (Grammar("json_schema", "[" * 5000), "recursion|JSON"),
    ],
    ids=lambda value: value.text[:24] if isinstance(value, Grammar) else None,
)
def test_refused(make: Make, small: Tokenizer, grammar: Grammar, words: str) -> None:
    grammars = make(small)
    start = time.process_time()
    with pytest.raises(RequestError, match=words) as caught:
        grammars.constrain(request(grammar, small))
    assert time.process_time() - start < 5
    assert caught.value.param == "grammar"
    assert len(str(caught.value)) < 300
    assert grammars.constrain(request(Grammar.regex("a"), small)).constraint is not None


def test_what_a_lenient_schema_leaves_out(make: Make, masks: Masks, small: Tokenizer) -> None:
    schema = {"not": {"type": "null"}, "type": "boolean"}
    text = draw(make(small), small, masks, Grammar.json_schema(schema, strict=False), 0)
    assert text in ("true", "false")


def test_one_that_takes_too_long(
    make: Make, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left behind, and others are compiled meanwhile."""
    grammars, release = make(small), threading.Event()
    slow, made = Grammar.regex("slow"), grammars._made

    def stuck(grammar: Grammar) -> Any:
        if grammar == slow:
            release.wait(60)
        return made(grammar)

    monkeypatch.setattr(grammars, "_made", stuck)
    with monkeypatch.context() as haste:
        haste.setattr(grammars_module, "COMPILE_SECONDS", 0.2)
        with pytest.raises(RequestError, match=r"not be compiled within 0\.2 seconds"):
            grammars.constrain(request(slow, small))
    assert grammars.constrain(request(Grammar.regex("quick"), small)).constraint is not None
    release.set()
    assert grammars.constrain(request(slow, small)).constraint is not None


class Notes:
    """Takes notes, as the driver does, and where its requests' items go."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def submit(self, requests: list[LiveRequest]) -> None:
        self.taken += [live.request.constraint is not None for live in requests]
        self.items.put("submitted")

    def abort(self, seq_ids: list[int]) -> None:
        self.taken.append(seq_ids)

    def put(self, items: list[Any]) -> None:
        self.items.put(*items)


def test_latecomers(make: Make, small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, driver, gate = make(small), Notes(), threading.Event()
    latecomers = Latecomers(grammars, driver)  # type: ignore[arg-type]

    def submit(grammar: Grammar | None) -> None:
        given = Request(0, (1,), SamplingParams(grammar=grammar), small.eos_token_ids)
        latecomers.submit(LiveRequest(given, 0, driver))

    submit(None)
    assert driver.items.get(timeout=60) == "submitted"
    submit(Grammar.regex("a"))
    assert driver.items.get(timeout=60) == "submitted"
    submit(Grammar.regex("("))
    assert isinstance(driver.items.get(timeout=60), RequestError)
    assert driver.taken == [False, True]
    constrain = grammars.constrain

    def gated(given: Request) -> Request:
        gate.wait(60)
        return constrain(given)

    monkeypatch.setattr(grammars, "constrain", gated)
    before = set(threading.enumerate())
    submit(Grammar.regex("b"))
    (waiting,) = set(threading.enumerate()) - before
    latecomers.abort([0])
    gate.set()
    waiting.join()
    assert driver.taken == [False, True, [0]]
    assert driver.items.empty()


def test_without_a_tokenizer(masks: Masks, small: Tokenizer) -> None:
    grammars = Grammars(None, Limits(vocab_size=100), masks)
    with pytest.raises(RequestError, match="needs a tokenizer"):
        grammars.constrain(request(Grammar.json_object(), small))
    plain = Request(0, (1,), SamplingParams())
    assert grammars.constrain(plain) is plain
