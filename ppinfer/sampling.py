"""How the next token is chosen from the logits of one sequence.

Torch-free: the driver validates these, and the last stage carries them out (``stage/sampler.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: dividing by it would overflow, and the limit is the same."""

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_BIASES = 1024
MAX_BIAS = 100.0
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling settings of one request; the default is greedy.

    Attributes:
        max_tokens: new tokens at most (fewer where the context ends first); 0 only with
            ``prompt_logprobs``, where the prompt is all that is wanted.
        min_tokens: end-of-sequence and stop tokens are not drawn before this many new tokens.
        temperature: logits are divided by it; below 1e-5 the highest logit is taken.
        top_k: keep the k highest logits; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probabilities sum to at least this.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt
            or output (Keskar et al. 2019, CTRL), 0.01 to 100; 1 is off.
        presence_penalty: subtracted once from tokens that occurred in the output.
        frequency_penalty: subtracted for every occurrence in the output.
        logit_bias: token id to what is added to its logit after the penalties, -100 to 100, for at
            most 1,024 tokens.
        seed: fixes every draw of this request; ``None`` lets the engine choose one.
        stop: strings that end the text and are not part of it; one string or several.
        stop_token_ids: token ids that end the sequence, beside the model's own.
        ignore_eos: go on past the model's end-of-sequence token.
        logprobs: also return the log-probability of each new token and of this many likeliest
            alternatives (from the logits before any setting above changes them); ``None`` is off.
        prompt_logprobs: likewise for each token of the prompt but the first, given those before it.
        grammar: what the output must look like. A token that does not fit it is never drawn, and
            the sequence ends where nothing may follow; stop tokens are drawn where it may end.

    Raises:
        RequestError: a value has the wrong type, is not finite, or is out of its range.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "stop", _strings("stop", self.stop))
        force_setattr(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        least = 1 if self.prompt_logprobs is None else 0
        _check_int("max_tokens", self.max_tokens, least, INT64_MAX)
        _check_int("min_tokens", self.min_tokens, 0, INT64_MAX)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}); "
                "lower the one or raise the other.",
                "min_tokens",
            )
        _check_float("temperature", self.temperature, 0.0, math.inf)
        _check_int("top_k", self.top_k, 0, INT64_MAX)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.logit_bias is not None:
            force_setattr(self, "logit_bias", _biases("logit_bias", self.logit_bias))
        if self.seed is not None:
            _check_int("seed", self.seed, INT64_MIN, INT64_MAX)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(
                "grammar must be a Grammar, such as Grammar.json_schema(…), not "
                f"{type(self.grammar).__name__}.",
                "grammar",
            )
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(
                f"ignore_eos must be true or false, not {self.ignore_eos!r}.", "ignore_eos"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on which tokens came before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number, not {value!r}.", name)
    if not low <= value <= high:
        bound = f"at least {low}" if high == INT64_MAX else f"between {low} and {high}"
        raise RequestError(f"{name} must be {bound}, not {value}.", name)


def _check_float(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {value!r}.", name)
    if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
        low_words = f"above {low:g}" if open_low else f"at least {low:g}"
        high_words = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(f"{name} must be {low_words}{high_words}, not {value}.", name)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Iterable):
        raise RequestError(f"{name} must be a string or a list of strings, not {value!r}.", name)
    strings = tuple(strings)
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(
            f"{name} takes at most {MAX_STOP_STRINGS} strings, not {len(strings)}.", name
        )
    if not all(isinstance(s, str) and s for s in strings):
        raise RequestError(f"{name} must hold strings that are not empty, not {value!r}.", name)
    return strings


def _biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must map token ids to numbers, not be {value!r}.")
    if len(value) > MAX_BIASES:
        raise RequestError(f"{name} takes at most {MAX_BIASES:,} tokens, not {len(value):,}.")
    for token, bias in value.items():
        _check_int(f"A token id of {name}", token, 0, INT64_MAX)
        _check_float(f"{name} of token {token}", bias, -MAX_BIAS, MAX_BIAS)
    return {token: float(bias) for token, bias in value.items()}


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list of token ids, not {value!r}.", name)
    ids = tuple(value)
    for token in ids:
        _check_int(name, token, 0, INT64_MAX)
    return ids
