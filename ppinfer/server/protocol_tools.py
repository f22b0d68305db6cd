"""What a request says of the form of its answer, and calls of tools, as structs. Types only, as in
``protocol``."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Base of what requests hold."""


# ---------------------------------------------------------------- the form of an answer


class _Format(Strict, tag_field="type"):
    pass


class TextFormat(_Format, tag="text"):
    pass


class JsonObjectFormat(_Format, tag="json_object"):
    pass


class JsonSchema(Strict, kw_only=True):
    """``description`` is for OpenAI's own models; here a prompt is as it was given."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Format, tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat

# ---------------------------------------------------------------- tools


class Function(Strict, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict, kw_only=True):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class NamedTool(Strict, kw_only=True):
    type: Literal["function"]
    function: FunctionName


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool

# ---------------------------------------------------------------- calls


class PastFunction(Strict):
    """``arguments`` is JSON as text. ``parsed_arguments`` is what OpenAI's client made of it, which
    it sends back; it changes nothing."""

    name: str
    arguments: str
    parsed_arguments: Any = None


class PastCall(Strict, kw_only=True):
    """A call that the model made in an earlier turn."""

    id: str
    function: PastFunction
    type: Literal["function"] = "function"


class CalledFunction(msgspec.Struct):
    """``arguments`` need not be complete where the answer was cut off."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    """``id``, ``type`` and the name come with a call's first part alone."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
