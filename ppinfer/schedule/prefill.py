"""How much of which prompts a step computes.

A step's prompts share tokens and time. The time is what a full chunk without context takes, so that
steps are equally long however much context there is; and less where somebody reads the tokens of
sequences that decode beside it. Each of these streams waits for the prompts that go first, so the
time is the more, the more prompts wait for each stream: a few prompts hardly slow down many
streams, and where many wait for few, nothing is held back.

Who gets it: the oldest prompt up to half, so that no stream of short ones starves it; then the
shortest, so that a long one does not hold them up; and what is left over, the oldest again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.step_model import StepModel

LEAST_TOKENS = 16
"""A step's prompts get that many whatever time it takes, so that they always go on."""

_STRETCH = 1.8
"""Time for prompts beside streams, as a part of a decode step's: what a single long prompt gets."""
_PATIENCE = 2.0
"""In addition, for each prompt that waits for a stream."""


def seconds_for_prompts(
    model: StepModel, chunk: int, decoding: float, context: float, per_stream: float | None
) -> float:
    """Time that a step has for prompts.

    Args:
        chunk: most tokens of prompts in a step.
        decoding: sequences that decode in it.
        context: their tokens together.
        per_stream: prompts that wait or are under way, for each stream; ``None`` without streams.
    """
    most = model.prefill_seconds(0, 0, chunk)
    if per_stream is None:
        return most
    beside = model.decode_seconds(decoding, context)
    return min(most, beside * (_STRETCH + _PATIENCE * per_stream))


@dataclass
class Budget:
    """What is left for the prompts of a step.

    ``rows`` are in the step already; without a ``model`` only tokens count.
    """

    tokens: int
    rows: int
    seconds: float = 0.0
    model: StepModel | None = None
    shares: dict[int, int] = field(default_factory=dict)
    """Tokens for each sequence, by its id."""

    def give(self, seq: Sequence, part: float = 1.0, least: int = 0) -> int:
        """Let a prompt have what it needs and there is, but of that no more than a ``part``.

        Returns what is left of the prompt.
        """
        had = self.shares.get(seq.seq_id, 0)
        wanted = seq.num_unplanned - had
        count = min(wanted, max(int(self.tokens * part), min(self.tokens, LEAST_TOKENS)))
        if self.model is not None and count:
            if not self.shares:
                least = LEAST_TOKENS
            start = seq.num_planned + had
            once = self.model.prefill_seconds(self.rows, start, 1)  # a step's weights are read once
            seconds = once + (self.seconds - once) * part
            fits = self.model.prefill_tokens(self.rows, start, count, seconds)
            count = min(count, max(fits, least))
            self.seconds -= self.model.prefill_seconds(self.rows, start, count)
        if count:
            self.shares[seq.seq_id] = had + count
            self.tokens -= count
            self.rows += count
        return wanted - count

    @property
    def is_spent(self) -> bool:
        """Whether a newcomer would get nothing."""
        if self.model is None or not self.shares:
            return self.tokens <= 0
        return self.tokens <= 0 or not self.model.prefill_tokens(self.rows, 0, 1, self.seconds)
