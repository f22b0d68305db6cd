"""A request under way, on the driver's thread: tokens become text here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ppinfer.engine.detokenizer import Detokenizer
from ppinfer.errors import PPInferError
from ppinfer.messages import SampledToken
from ppinfer.request import FinishReason, Request, RequestDelta, TokenLogprobs

Item: TypeAlias = RequestDelta | PPInferError


class Sink(Protocol):
    """Where requests' deltas go, those of one step together, so that a reader wakes once a step.

    Such as an unbounded queue: a slow reader holds nobody up.
    """

    def put(self, items: list[Item], /) -> None:
        """Called by the driver's thread; must not wait."""


@dataclass(slots=True)
class LiveRequest:
    """``text`` is ``None`` where the engine has no tokenizer; deltas then carry ids alone."""

    request: Request
    index: int
    sink: Sink
    text: Detokenizer | None = None

    def advance(self, sampled: SampledToken, reason: FinishReason | None) -> RequestDelta:
        """What a new token adds; the reason becomes ``stop`` where a stop string is complete."""
        text = ""
        if self.text is not None:
            # A stop token ends the text but is no part of it.
            is_stop_token = sampled.token in self.request.stop_ids
            if not is_stop_token:
                text = self.text.push([sampled.token])
            if self.text.stop_string is not None:
                reason = "stop"
            elif reason is not None:
                text += self.text.finish()
        return RequestDelta(
            index=self.index,
            text=text,
            token_ids=[sampled.token],
            finish_reason=reason,
            logprobs=None if sampled.logprob is None else [_logprobs(sampled, sampled.logprob)],
        )


def _logprobs(sampled: SampledToken, logprob: float) -> TokenLogprobs:
    top = dict(zip(sampled.top_ids, sampled.top_logprobs, strict=True))
    return TokenLogprobs(sampled.token, logprob, top)
