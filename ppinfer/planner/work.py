"""What a step asks of a stage, in the few numbers that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.messages import StepPlan


@dataclass(frozen=True, slots=True)
class StepWork:
    """
    Attributes:
        tokens: rows of the linear layers.
        sequences: that have a part in the step.
        samples: rows of the head.
        decode_context: tokens whose keys and values single tokens read, together.
        prompt_context: the same for chunks of prompts; each chunk reads what is before it once.
        prompt_pairs: pairs of a chunk's token and one that it attends to.
    """

    tokens: int
    sequences: int
    samples: int
    decode_context: int = 0
    prompt_context: int = 0
    prompt_pairs: float = 0.0

    @classmethod
    def of(cls, plan: StepPlan) -> StepWork:
        tokens = samples = decode_context = prompt_context = 0
        pairs = 0.0
        for step in plan.steps:
            count, start = len(step.tokens), step.start
            tokens += count
            samples += step.sample
            if count == 1:
                decode_context += start + 1
            else:
                prompt_context += start + count
                pairs += count * (start + (count + 1) / 2)
        return cls(tokens, len(plan.steps), samples, decode_context, prompt_context, pairs)

    @classmethod
    def decode(cls, sequences: int, context: int) -> StepWork:
        """A token of each of so many sequences that have ``context`` tokens each."""
        return cls(sequences, sequences, sequences, sequences * context)

    @classmethod
    def prefill(cls, sequences: int, count: int, start: int = 0, samples: int = 0) -> StepWork:
        """``count`` tokens of each of so many prompts, from ``start`` on."""
        pairs = sequences * count * (start + (count + 1) / 2)
        return cls(sequences * count, sequences, samples, 0, sequences * (start + count), pairs)
