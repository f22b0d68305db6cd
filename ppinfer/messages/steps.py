"""What travels once a step: plans to every stage, tokens back.

What comes by the hundred is hidden from Python's garbage collector (``gc=False``), which would
otherwise cost more than all else: plain data has no cycles.
"""

from __future__ import annotations

import msgspec

from ppinfer.messages.base import Message
from ppinfer.sampling import SamplingParams


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's immutable part, sent with its first step, and again if it starts over.

    ``history`` holds its tokens so far, prompt first, where penalties need them, and is empty
    otherwise.
    """

    seq_id: int
    prompt_len: int
    params: SamplingParams
    stop_ids: tuple[int, ...] = ()
    history: tuple[int, ...] = ()


PENDING = -1
"""In a plan: the token that the sequence's latest step before this one draws.

Plans run ahead of results. The last stage sends what it drew straight to the first one, which puts
it in this place.
"""


class SequenceStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some tokens of one sequence: a prompt, a chunk of one, or a single decoded token.

    ``tokens[i]`` stands at position ``start + i``, a single one may be ``PENDING``; ``new_blocks``
    are appended to the sequence's block table before the step; ``sample`` asks for the token after
    the last one.
    """

    seq_id: int
    start: int
    tokens: list[int]
    new_blocks: list[int]
    sample: bool


class StepPlan(Message, frozen=True):
    """One step of one micro-batch, the same for every stage.

    ``ended`` names sequences whose state a stage may forget, before anything else is done.
    ``step_id`` counts from 0 without gaps. ``threads`` is how many CPU threads each stage computes
    the step with; 0 leaves what it was started with.
    """

    step_id: int
    slot: int
    ended: list[int]
    new: list[NewSequence]
    steps: list[SequenceStep]
    threads: int = 0

    @property
    def num_tokens(self) -> int:
        return sum([len(step.tokens) for step in self.steps])

    @property
    def sampled(self) -> list[int]:
        """The sequences that get a token, in the plan's order."""
        return [step.seq_id for step in self.steps if step.sample]


class SampledToken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``top_ids`` and ``top_logprobs`` are parallel, likeliest first, where they were asked for.

    They are tuples because empty ones cost nothing.
    """

    seq_id: int
    token: int
    logprob: float | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class StepResult(Message, frozen=True):
    """What the last stage drew in one step, in the plan's order."""

    step_id: int
    tokens: list[SampledToken]
