"""What the output of a request must look like. Torch-free; compiled by ``engine/grammars.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import msgspec

from ppinfer.errors import RequestError

MAX_CHARS = 131_072
"""Of a grammar's text; more than OpenAI takes of a schema."""

MAX_MULTIPLE = 100_000
"""Numbers that divide by this are told from others by an automaton of as many states."""

# One line, blanks only where most write one. Left free, a lost model writes blanks for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


class Grammar(msgspec.Struct, frozen=True):
    """A constraint on an output: every token that is drawn fits it.

    Made by ``json_object``, ``json_schema``, ``regex`` and ``lark``.

    Raises:
        RequestError: the text is too long. Whether it makes sense shows when it is compiled.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_CHARS:
            raise _refusal(f"it must not be longer than {MAX_CHARS:,} characters")

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], strict: bool = True) -> Grammar:
        """JSON on one line that fits a schema (draft 2020-12), its properties in that one's order.

        What cannot be enforced of it is an error if ``strict``, and else left out.
        """
        return cls("json_schema", schema_text(schema, strict))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust's ``regex``."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A context-free grammar in the dialect of Lark that llguidance reads."""
        return cls("lark", text)


def schema_text(schema: Mapping[str, Any], strict: bool) -> str:
    """A schema as JSON, with our options for its grammar.

    Raises:
        RequestError: it is no JSON, or asks for what would take for ever.
    """
    if not isinstance(schema, Mapping):
        raise RequestError(
            f"A JSON schema must be an object, not {type(schema).__name__}.", "grammar"
        )
    options = {**_LAYOUT, "lenient": not strict}
    try:
        text = json.dumps({**schema, "x-guidance": options}, allow_nan=False)
        given = json.loads(text, parse_float=Decimal)
    except (TypeError, ValueError, RecursionError):
        raise _refusal("its schema is not JSON, or nested too deeply") from None
    if math.lcm(*_multiples(given)) > MAX_MULTIPLE:
        raise _refusal(f"its multipleOf must not come to more than {MAX_MULTIPLE:,} together")
    return text


def _multiples(schema: Any) -> list[int]:
    """The digits of every ``multipleOf``, as whole numbers that are not zero."""
    found, left = [], [schema]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += item.values()
            number = item.get("multipleOf")
            if isinstance(number, int | Decimal):
                digits = Decimal(number).normalize().as_tuple().digits
                found.append(int("".join(map(str, digits))) or 1)
    return found


def _refusal(why: str) -> RequestError:
    return RequestError(f"The grammar was refused: {why}.", "grammar")
