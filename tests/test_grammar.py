"""Grammars as texts: what goes into them, and what is refused before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ppinfer.errors import RequestError
from ppinfer.grammar import MAX_CHARS, Grammar
from ppinfer.sampling import SamplingParams


def test_kinds() -> None:
    assert Grammar.regex("[0-9]+") == Grammar("regex", "[0-9]+")
    assert Grammar.lark("start: /x/").kind == "lark"
    assert json.loads(Grammar.json_object().text)["type"] == "object"


def test_a_schema_keeps_its_order_and_gets_our_options() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}, "x-guidance": {"lenient": True}}
    found = json.loads(Grammar.json_schema(schema).text)
    assert list(found["properties"]) == ["z", "a"]
    assert found["x-guidance"]["lenient"] is False
    assert json.loads(Grammar.json_schema(schema, strict=False).text)["x-guidance"]["lenient"]
    assert schema["x-guidance"] == {"lenient": True}


def test_on_its_way_to_the_driver() -> None:
    params = SamplingParams(grammar=Grammar.json_schema({"const": "é\u2028\ud83d"}))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "must be an object, not list"),
        ({"const": {1, 2}}, "not JSON"),
        ({"maximum": float("inf")}, "not JSON"),
        (nested(100_000), "nested too deeply"),
        ({"const": "x" * MAX_CHARS}, "must not be longer than 131,072"),
        ({"multipleOf": 10**9 + 7}, "multipleOf"),
        ({"multipleOf": 0.1234567}, "multipleOf"),
        ({"allOf": [{"multipleOf": 9973}, {"items": {"multipleOf": 9967}}]}, "multipleOf"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_refused(schema: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        Grammar.json_schema(schema)
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 0.01},
        {"anyOf": [{"multipleOf": n} for n in (2, 5, 10, 100, 0.5, 1e3)]},
        {"properties": {"multipleOf": {"type": "integer"}}},
        {"multipleOf": 0},  # nonsense, which llguidance names
    ],
)
def test_usual_multiples_are_taken(schema: dict[str, Any]) -> None:
    Grammar.json_schema(schema)
