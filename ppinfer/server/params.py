"""Fields of a request to ``SamplingParams``. What a value may be is decided there, in
``ppinfer.sampling``; here is only what HTTP adds: other names, defaults and bounds on size."""

from __future__ import annotations

from typing import Any

from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar
from ppinfer.sampling import INT64_MIN, SamplingParams
from ppinfer.server.errors import invalid, unsupported
from ppinfer.server.formats import format_grammar
from ppinfer.server.protocol import ChatRequest, CompletionRequest, Generate

MAX_CHOICES = 128
MAX_STOP_CHARS = 1_000
MAX_STOP_TOKENS = 128
MAX_BIASES = 1_024
BIAS_LIMIT = 100.0
PRIORITY_LIMIT = 2**31 - 1
COMPLETION_TOKENS = 16
"""New tokens of a completion that does not say how many, as OpenAI has it."""

_SAME_NAME = (
    "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "ignore_eos",
)  # fmt: skip


def chat_params(
    request: ChatRequest, vocab_size: int, max_model_len: int, grammar: Grammar | None = None
) -> SamplingParams:
    """Without a limit, an answer may go on to the end of the context."""
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    limit, name = request.max_completion_tokens, "max_completion_tokens"
    if limit is None:
        limit, name = request.max_tokens, "max_tokens"
    elif request.max_tokens not in (None, limit):
        raise invalid(
            "max_tokens",
            "max_tokens and max_completion_tokens are two names of one limit and must not differ.",
        )
    return _params(
        request,
        vocab_size,
        names={"max_tokens": name, "logprobs": "top_logprobs"},
        max_tokens=max_model_len if limit is None else limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        grammar=grammar,
    )


def completion_params(request: CompletionRequest, vocab_size: int) -> SamplingParams:
    """``max_tokens`` of 0 may only have an echo. Without ``logprobs``, where there is nothing to
    compute, it is for the caller to handle."""
    limit = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    scored = request.logprobs if request.echo else None
    if limit == 0 and request.echo and scored is None:
        limit = 1
    return _params(
        request,
        vocab_size,
        max_tokens=limit,
        logprobs=request.logprobs,
        prompt_logprobs=scored,
        grammar=format_grammar(request.response_format),
    )


def choices(request: Generate) -> int:
    """How many answers each prompt gets."""
    if request.n is None:
        return 1
    if not 1 <= request.n <= MAX_CHOICES:
        raise invalid("n", f"n must be between 1 and {MAX_CHOICES}.")
    return request.n


def priority(request: Generate) -> int:
    if request.priority is None:
        return 0
    if abs(request.priority) > PRIORITY_LIMIT:
        raise invalid("priority", f"priority must be within {PRIORITY_LIMIT} of zero.")
    return request.priority


def with_usage(request: Generate) -> bool:
    """Whether a stream ends with the numbers of tokens."""
    if request.stream_options is None:
        return False
    if not request.stream:
        raise invalid("stream_options", "stream_options needs stream to be true.")
    return bool(request.stream_options.include_usage)


def seed_of_choice(seed: int, index: int) -> int:
    """Choices differ, and the first is what the seed gives alone; stays within int64."""
    return (seed + index - INT64_MIN) % 2**64 + INT64_MIN


def _params(
    request: Generate, vocab_size: int, names: dict[str, str] | None = None, **fields: Any
) -> SamplingParams:
    """``names`` are what the request calls a field where ``SamplingParams`` calls it otherwise."""
    given = {name: getattr(request, name) for name in _SAME_NAME}
    fields |= {name: value for name, value in given.items() if value is not None}
    fields.setdefault("temperature", 1.0)
    fields["stop"] = _stops(request.stop)
    fields["stop_token_ids"] = _stop_tokens(request.stop_token_ids, vocab_size)
    if request.logit_bias:
        if "logit_bias" not in SamplingParams.__struct_fields__:
            raise unsupported("logit_bias")
        fields["logit_bias"] = _biases(request.logit_bias, vocab_size)
    try:
        return SamplingParams(**fields)
    except RequestError as error:
        param = error.param or ""
        name = (names or {}).get(param, param)
        raise invalid(name or None, str(error).replace(param, name, 1)) from None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(0 < len(item) <= MAX_STOP_CHARS for item in stops):
        raise invalid("stop", f"A stop string must have 1 to {MAX_STOP_CHARS:,} characters.")
    return stops


def _stop_tokens(ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    if not ids:
        return ()
    if len(ids) > MAX_STOP_TOKENS:
        raise invalid("stop_token_ids", f"stop_token_ids takes at most {MAX_STOP_TOKENS} ids.")
    check_ids(ids, vocab_size, "stop_token_ids")
    return tuple(ids)


def _biases(biases: dict[int, float], vocab_size: int) -> dict[int, float]:
    if len(biases) > MAX_BIASES:
        raise invalid("logit_bias", f"logit_bias takes at most {MAX_BIASES:,} tokens.")
    check_ids(list(biases), vocab_size, "logit_bias")
    if not all(abs(value) <= BIAS_LIMIT for value in biases.values()):
        raise invalid("logit_bias", f"A bias must be within {BIAS_LIMIT:g} of zero.")
    return biases


def check_ids(ids: list[int], vocab_size: int, param: str) -> None:
    """``ids`` is not empty."""
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise invalid(
            param,
            f"{param} has a token id outside the vocabulary of {vocab_size} tokens "
            f"(0 to {vocab_size - 1}).",
        )
