"""Log-probabilities of prompt tokens, each given those before it.

They need the logits of all of a prompt's rows, which together would be larger than anything else
that a stage holds: so rows are worked on in slices. What comes of a row depends on that row alone,
as in sampling: ``draw.py`` defines it, and the native kernels compute it where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ppinfer.kernels.sample import Drawn, look_up, usable_kernels
from ppinfer.messages import NewSequence, PromptLogprobs, StepPlan
from ppinfer.stage.draw import log_probs
from ppinfer.stage.sampler import highest_of

SLICE_BYTES = 32 * 2**20
"""Of logits that are there at once."""


class Scorer:
    """Knows the prompts of live sequences that are scored; lives on the last stage.

    ``logits_of`` gives logits ``(rows, vocab)`` of hidden states ``(rows, hidden_size)``.
    """

    def __init__(self, vocab_size: int, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._vocab_size = vocab_size
        self._logits_of = logits_of
        self._sequences: dict[int, NewSequence] = {}

    def add(self, sequence: NewSequence) -> None:
        if sequence.params.prompt_logprobs is not None:
            self._sequences[sequence.seq_id] = sequence

    def remove(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)

    def score(self, plan: StepPlan, hidden: torch.Tensor) -> list[PromptLogprobs]:
        """What the plan asks for; ``hidden`` ``(tokens, hidden_size)`` are all of its rows.

        Raises:
            StageError: there is a NaN among the logits.
        """
        rows: list[int] = []
        tokens: list[int] = []
        tops: list[int] = []
        begin = 0
        for step in plan.steps:
            if step.scores:
                sequence = self._sequences[step.seq_id]
                last = min(step.start + len(step.tokens), sequence.prompt_len - 1)
                first = last - step.scores
                rows += range(begin + first - step.start, begin + last - step.start)
                tokens += sequence.history[first + 1 : last + 1]
                tops += [self._top(step.seq_id)] * step.scores
            begin += len(step.tokens)
        found = np.empty(len(rows), np.dtype(Drawn))
        highest: list[int] = []
        at_once = max(1, SLICE_BYTES // (self._vocab_size * hidden.element_size()))
        for at in range(0, len(rows), at_once):
            these = slice(at, at + at_once)
            logits = self._logits_of(hidden[torch.tensor(rows[these], device=hidden.device)])
            highest += highest_of(logits)
            found[these] = _look_up(logits, tokens[these], highest[these], tops[these])
        return self._by_sequence(plan, found, highest)

    def _by_sequence(
        self, plan: StepPlan, found: npt.NDArray[np.void], highest: list[int]
    ) -> list[PromptLogprobs]:
        results = []
        at = 0
        for seq_id, count in plan.scored:
            these, top = slice(at, at + count), self._top(seq_id)
            results.append(
                PromptLogprobs(
                    seq_id,
                    tuple(found["logprob"][these].tolist()),
                    tuple(highest[these]),
                    tuple(found["top_ids"][these, :top].ravel().tolist()),
                    tuple(found["top_logprobs"][these, :top].ravel().tolist()),
                )
            )
            at += count
        return results

    def _top(self, seq_id: int) -> int:
        return min(self._sequences[seq_id].params.prompt_logprobs or 0, self._vocab_size)


def _look_up(
    logits: torch.Tensor, tokens: Sequence[int], highest: Sequence[int], tops: Sequence[int]
) -> npt.NDArray[np.void]:
    """``Drawn`` structs, one a row."""
    kernels = usable_kernels(logits)
    if kernels is not None:
        return look_up(kernels, logits, tokens, highest, tops)
    found = np.empty(len(tokens), np.dtype(Drawn))
    for i, (row, token, top) in enumerate(zip(logits.float(), tokens, tops, strict=True)):
        found["logprob"][i], found["top_ids"][i, :top], found["top_logprobs"][i, :top] = log_probs(
            row, token, top
        )
    return found
