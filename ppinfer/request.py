"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from ppinfer.sampling import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length", "abort"]
"""Why a sequence ended: a stop token or string, the token limit, or the caller's wish."""

ChatMessage: TypeAlias = dict[str, str]
"""``{"role": "user" | "assistant" | "system", "content": text}``."""

Prompt: TypeAlias = str | list[int] | list[ChatMessage]
"""Text, token ids, or chat messages to put through the model's chat template."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue, as the schedule sees it: tokens only, no text.

    Attributes:
        seq_id: unique for the engine's lifetime.
        prompt_token_ids: at least one token.
        params: sampling settings; ``max_tokens`` already fits the context and ``seed`` is set.
        stop_ids: token ids that end the sequence (the model's own unless ``ignore_eos``).
        priority: of requests that wait, those with a lower one run first.
        salt: whose request it is: only requests with the same one share cached prefixes.
        streamed: whether somebody reads its tokens as they come, so that prompts beside it must
            not take too much of a step's time.
    """

    seq_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    salt: str = ""
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural, of the unchanged logits) at one new token.

    ``top`` maps the likeliest token ids to their log-probabilities, likeliest first.
    """

    token_id: int
    logprob: float
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request.

    Attributes:
        index: position of the prompt in the call.
        prompt: the text given, or ``None`` where token ids were given.
        prompt_token_ids: what the model saw.
        text: the new text, cut before a stop string, without special tokens.
        token_ids: every new token, an end-of-sequence token included.
        finish_reason: see ``FinishReason``.
        logprobs: one entry a new token where ``SamplingParams.logprobs`` asked for it.
    """

    index: int
    prompt: str | None
    prompt_token_ids: list[int]
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] | None = None


class RequestDelta(msgspec.Struct, frozen=True, gc=False):
    """What one step added to a request, as ``stream`` yields it.

    ``text`` may be empty while a multi-byte character or a possible stop string is unfinished;
    the texts of all deltas join to ``RequestOutput.text``. ``finish_reason`` is set on the last.
    """

    index: int
    text: str
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
