"""Requests and answers of OpenAI's API, as structs. Types only: what a value may be beyond its
type, and what it does, is for ``params``, ``chat`` and ``completions``.

Every field that may be left out may also be null. An unknown field is an error. Fields of type
``Raw`` are known and not supported: they may hold what changes nothing (``NEUTRAL``).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ppinfer.server.protocol_tools import (
    PastCall,
    ResponseFormat,
    Strict,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)

_NULL = Raw(b"null")

NEUTRAL: dict[str, tuple[bytes, ...]] = {
    "audio": (), "best_of": (b"1",), "function_call": (b'"none"', b'"auto"'), "functions": (b"[]",),
    "modalities": (b'["text"]',), "prediction": (), "reasoning_effort": (),
    "refusal": (), "suffix": (b'""',),
    "verbosity": (), "web_search_options": (), "annotations": (b"[]",),
}  # fmt: skip
"""JSON, without blanks, that an unsupported field may hold beside null."""


# ---------------------------------------------------------------- requests


class StreamOptions(Strict, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Generate(Strict, kw_only=True):
    """What both ways of generating have in common.

    ``user``, ``metadata``, ``store``, ``safety_identifier``, ``prompt_cache_key`` and
    ``service_tier`` are for OpenAI's own service; they are accepted and change nothing.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[int, float] | None = None
    priority: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None


class ContentPart(msgspec.Struct):
    """Only text is taken; the rest of a part of another type is not even looked at."""

    type: str
    text: str | None = None


class Message(Strict, kw_only=True):
    """``name`` is for tools alone. ``parsed`` is what OpenAI's client made of ``content``, which it
    sends back; it changes nothing."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    parsed: Any = None
    refusal: Raw = _NULL
    audio: Raw = _NULL
    annotations: Raw = _NULL
    function_call: Raw = _NULL


class ChatRequest(Generate, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Raw = _NULL
    function_call: Raw = _NULL
    audio: Raw = _NULL
    modalities: Raw = _NULL
    prediction: Raw = _NULL
    reasoning_effort: Raw = _NULL
    verbosity: Raw = _NULL
    web_search_options: Raw = _NULL


class CompletionRequest(Generate, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: Raw = _NULL
    best_of: Raw = _NULL


class TokenizeRequest(Strict, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Strict, kw_only=True):
    tokens: list[int]
    model: str | None = None


# ---------------------------------------------------------------- answers

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AnswerMessage(msgspec.Struct):
    content: str | None
    role: str = "assistant"
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(msgspec.Struct):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class Model(msgspec.Struct):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "ppinfer"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: str = "list"


class Tokens(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]


class Text(msgspec.Struct):
    prompt: str
