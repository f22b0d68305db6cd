"""A request under way: on the driver's thread tokens become text here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from ppinfer.engine.detokenizer import Detokenizer
from ppinfer.errors import PPInferError
from ppinfer.messages import PromptLogprobs, SampledToken
from ppinfer.request import (
    FinishReason,
    PromptTokenLogprobs,
    Request,
    RequestDelta,
    RequestOutput,
    TokenLogprobs,
)

Item: TypeAlias = RequestDelta | PPInferError


class Sink(Protocol):
    """Where requests' deltas go, those of one step together, so that a reader wakes once a step.

    Such as an unbounded queue: a slow reader holds nobody up.
    """

    def put(self, items: list[Item], /) -> None:
        """Called by the driver's thread; must not wait."""


@dataclass(slots=True)
class LiveRequest:
    """``text`` is ``None`` where the engine has no tokenizer; deltas then carry ids alone.

    ``arrived``, ``launched`` (its first step), ``first_token`` and ``last_token`` are when these
    were (``perf_counter``), for the driver's ``Tally``, which sets them.
    """

    request: Request
    index: int
    sink: Sink
    text: Detokenizer | None = None
    arrived: float = field(default_factory=time.perf_counter)
    launched: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def advance(
        self,
        sampled: SampledToken | None,
        reason: FinishReason | None,
        prompt: list[PromptLogprobs] | None = None,
    ) -> RequestDelta:
        """What a new token adds; the reason becomes ``stop`` where a stop string is complete.

        ``prompt`` comes once if it comes, with the first token or without any.
        """
        scores = None if prompt is None else self._prompt_logprobs(prompt)
        if sampled is None:
            return RequestDelta(self.index, "", [], reason, None, scores)
        text, detokenizer = "", self.text
        if detokenizer is not None:
            is_stop = reason == "stop" and sampled.token in self.request.stop_ids
            if not is_stop:  # a stop token ends the text but is no part of it
                text = detokenizer.push(sampled.token)
            if detokenizer.stop_string is not None:
                reason = "stop"
            elif reason is not None:
                text += detokenizer.finish()
        logprobs = None if sampled.logprob is None else [_logprobs(sampled, sampled.logprob)]
        return RequestDelta(self.index, text, [sampled.token], reason, logprobs, scores)

    def output(self, prompt: str | None, deltas: Sequence[RequestDelta]) -> RequestOutput:
        """The finished request, from all it got; ``prompt`` is the text given, if it was text."""
        reason = deltas[-1].finish_reason
        assert reason is not None
        logprobs: list[TokenLogprobs] | None = None
        if self.request.params.logprobs is not None:
            logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
        return RequestOutput(
            index=self.index,
            prompt=prompt,
            prompt_token_ids=list(self.request.prompt_token_ids),
            text="".join(delta.text for delta in deltas),
            token_ids=[token for delta in deltas for token in delta.token_ids],
            finish_reason=reason,
            logprobs=logprobs,
            prompt_logprobs=deltas[0].prompt_logprobs,
        )

    def _prompt_logprobs(self, parts: list[PromptLogprobs]) -> list[PromptTokenLogprobs | None]:
        """An entry a token of the prompt, ``None`` for the first."""
        tokens = iter(self.request.prompt_token_ids)
        next(tokens)
        entries: list[PromptTokenLogprobs | None] = [None]
        for part in parts:
            count = len(part.top_ids) // len(part.logprobs)
            for i, (logprob, highest) in enumerate(zip(part.logprobs, part.highest, strict=True)):
                token, these = next(tokens), slice(i * count, (i + 1) * count)
                top = dict(zip(part.top_ids[these], part.top_logprobs[these], strict=True))
                entries.append(PromptTokenLogprobs(token, logprob, top, token == highest))
        return entries


def _logprobs(sampled: SampledToken, logprob: float) -> TokenLogprobs:
    top = dict(zip(sampled.top_ids, sampled.top_logprobs, strict=True))
    return TokenLogprobs(sampled.token, logprob, top)
