"""What the grammar of a request's tools lets the model write, tried out with llguidance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher, LLTokenizer
from support.fake_async_engine import small_tokenizer
from support.small_tokenizers import train_byte_level
from tokenizers import AddedToken

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.grammar import Grammar
from ppinfer.server.formats import format_grammar
from ppinfer.server.protocol import ChatRequest
from ppinfer.server.tools import read_tools

UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "now_in", "parameters": UNIT}},
]
NAMED = {"type": "function", "function": {"name": "now_in"}}
A = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
B = '<tool_call>\n{"name": "now_in", "arguments": {"unit": "F"}}\n</tool_call>'
TEXT = "Let me see: <b>no</b> call.\n"


def fits(tokenizer: Tokenizer, text: str, **fields: Any) -> str:
    """``yes``, ``so far`` where more must follow, or ``no``."""
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS} | fields
    request = msgspec.json.decode(msgspec.json.encode(body), type=ChatRequest)
    answer: Grammar | None = format_grammar(request.response_format)
    grammar = read_tools(request).grammar(answer, tokenizer)
    ends: Sequence[int] = sorted(tokenizer.eos_token_ids)
    vocabulary = LLTokenizer(
        tokenizer.backend.to_str(), n_vocab=tokenizer.vocab_size, eos_token=list(ends)
    )
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar.text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    for token in tokenizer.encode(text):
        mask = matcher.compute_bitmask()
        if not mask[token >> 3] >> (token & 7) & 1:
            return "no"
        assert matcher.consume_token(token)
    return "yes" if matcher.is_accepting() else "so far"


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({}, TEXT, "yes"), ({}, "", "yes"), ({}, A, "yes"), ({}, f"{A}\n{B}\n{A}", "yes"),
        ({}, f"{TEXT}{B}", "yes"), ({}, f"{A}{B}", "no"), ({}, f"{A}\n{TEXT}", "no"),
        ({}, f"{TEXT}<tool_call>", "so far"), ({}, f"{TEXT}<tool_call>\nno", "no"),
        ({}, B.replace("F", "K"), "no"), ({}, B.replace("now_in", "now"), "no"),
        ({}, A.replace("now", "other"), "no"), ({}, A[:-1], "so far"),
        ({}, re.sub(": {}", ":  {}", A), "no"), ({}, B.replace('": "F', '":"F'), "yes"),
        ({}, B.replace('": "F', '":  "F'), "no"), ({}, B.replace('": "F', '" : "F'), "no"),
        ({"parallel_tool_calls": False}, f"{TEXT}{A}", "yes"),
        ({"parallel_tool_calls": False}, f"{A}\n{B}", "no"),
        ({"tool_choice": "required"}, A, "yes"), ({"tool_choice": "required"}, TEXT, "no"),
        ({"tool_choice": "required"}, f"{A}\n{B}", "yes"),
        ({"tool_choice": "required"}, "", "so far"),
        ({"tool_choice": NAMED}, B, "yes"), ({"tool_choice": NAMED}, A, "no"),
        ({"tool_choice": NAMED}, f"{B}\n{B}", "no"),
        ({"response_format": {"type": "json_object"}}, '{"a": "<tool_call>"}', "yes"),
        ({"response_format": {"type": "json_object"}}, A, "yes"),
        ({"response_format": {"type": "json_object"}}, TEXT, "no"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_token", [False, True])
def test_fits(fields: dict[str, Any], text: str, expected: str, has_token: bool) -> None:
    tokenizer = small_tokenizer()
    if has_token:
        backend = train_byte_level()
        backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
        tokenizer = Tokenizer(backend, special_tokens={"eos_token": "<|im_end|>"})
        text = text.replace('"<tool_call>"', '"x"')  # in a string it is no call
    assert fits(tokenizer, text, **fields) == expected
