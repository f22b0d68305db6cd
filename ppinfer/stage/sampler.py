"""Draws the next token of each sequence from its logits.

A draw depends on (seed, position, logits) alone: every row is worked on by itself, so who shares
the micro-batch cannot matter. What is drawn is defined by ``draw.py`` and, before it,
``adjust.py``; the native kernels do both over threads where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppinfer.errors import StageError
from ppinfer.kernels.argmax import argmax_rows
from ppinfer.kernels.sample import Drawn, Settings, draw_rows, usable_kernels
from ppinfer.messages import NewSequence, SampledToken
from ppinfer.stage.adjust import Adjustments
from ppinfer.stage.draw import draw_token, log_probs
from ppinfer.stage.philox import uniform


class SequenceSampler:
    """What sampling must remember of one sequence."""

    def __init__(self, sequence: NewSequence, vocab_size: int) -> None:
        params = sequence.params
        assert params.is_greedy or params.seed is not None, "the driver gives every request a seed"
        self._seq_id = sequence.seq_id
        self._params = params
        self._seed = params.seed or 0
        self._adjustments = Adjustments(sequence, vocab_size)
        self._settings = Settings(
            seed=self._seed,
            top_k=min(params.top_k, vocab_size),
            temperature=0.0 if params.is_greedy else params.temperature,
            top_p=params.top_p,
            min_p=params.min_p,
            logprobs=-1 if params.logprobs is None else params.logprobs,
            given=-1,
        )
        self._adjustments.fill(self._settings)

    def is_plain(self, position: int, mask: bytes) -> bool:
        """Whether the next token is just the highest logit."""
        params = self._params
        return (
            params.is_greedy
            and params.logprobs is None
            and self._adjustments.is_empty(position, mask)
        )

    def settings(self, position: int, mask: bytes, row: int, highest: int) -> Settings:
        """For the native kernels; good until the next token is taken, or ``mask`` is gone."""
        settings = self._settings
        settings.position, settings.row, settings.highest = position, row, highest
        self._adjustments.fill_forbidden(settings, position, mask)
        return settings

    def take(self, drawn: Drawn) -> SampledToken:
        """What the native kernels drew."""
        self._add(drawn.token)
        if self._params.logprobs is None:
            return SampledToken(self._seq_id, drawn.token)
        count = drawn.num_top
        return SampledToken(
            self._seq_id,
            drawn.token,
            drawn.logprob,
            tuple(drawn.top_ids[:count]),
            tuple(drawn.top_logprobs[:count]),
        )

    def draw(self, logits: torch.Tensor, position: int, mask: bytes) -> SampledToken:
        """The token at ``position``, from ``logits`` ``(vocab,)``, in PyTorch."""
        adjusted = logits.float()
        if not self._adjustments.is_empty(position, mask):
            adjusted = self._adjustments.apply(logits, position, mask)
        token = draw_token(adjusted, self._params, uniform(self._seed, position))
        self._add(token)
        top = self._params.logprobs
        if top is None:
            return SampledToken(self._seq_id, token)
        return SampledToken(self._seq_id, token, *log_probs(logits.float(), token, top))

    def _add(self, token: int) -> None:
        if self._params.has_penalties:
            self._adjustments.add(token)
            self._adjustments.fill(self._settings)


class Sampler:
    """The samplers of every live sequence; lives on the last stage."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._sequences: dict[int, SequenceSampler] = {}

    def add(self, sequence: NewSequence) -> None:
        self._sequences[sequence.seq_id] = SequenceSampler(sequence, self._vocab_size)

    def remove(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)

    def sample(
        self,
        logits: torch.Tensor,
        seq_ids: Sequence[int],
        positions: Sequence[int],
        masks: Sequence[bytes] | None = None,
    ) -> list[SampledToken]:
        """One token a row of ``logits`` ``(rows, vocab)``, each for its place in ``positions``.

        ``masks`` has a ``SequenceStep.mask`` a row, where there are any. The logits may be of any
        float type; what is not greedy is computed in fp32 or better.

        Raises:
            StageError: there is a NaN among the logits.
        """
        highest = highest_of(logits)
        sampled = list(map(SampledToken, seq_ids, highest))
        samplers = [self._sequences[seq_id] for seq_id in seq_ids]
        masks = masks or [b""] * len(samplers)
        parts = enumerate(zip(samplers, positions, masks, strict=True))
        rows = [i for i, (of, position, mask) in parts if not of.is_plain(position, mask)]
        if not rows:
            return sampled
        kernels = usable_kernels(logits)
        if kernels is None:
            for i in rows:
                sampled[i] = samplers[i].draw(logits[i], positions[i], masks[i])
        else:
            settings = [samplers[i].settings(positions[i], masks[i], i, highest[i]) for i in rows]
            for i, drawn in zip(rows, draw_rows(kernels, logits, settings), strict=True):
                sampled[i] = samplers[i].take(drawn)
        return sampled


def highest_of(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row of ``logits`` ``(rows, vocab)``, of equal ones the first.

    Raises:
        StageError: there is a NaN among them.
    """
    highest = argmax_rows(logits)
    if -1 in highest:
        raise StageError(
            "The last stage computed logits that are no numbers; the weights are damaged, or too "
            "large for the dtype: try fp32 or bf16."
        )
    return highest
