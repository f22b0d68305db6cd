"""Draws the next token of each sequence from its logits.

A draw depends on (seed, position, logits) alone: every row is worked on by itself, so who shares
the micro-batch cannot matter. The order of the settings is that of ``transformers``: penalties,
forbidden tokens, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppinfer.errors import StageError
from ppinfer.kernels.argmax import argmax_rows
from ppinfer.messages import NewSequence, SampledToken
from ppinfer.stage.philox import uniform

_FIRST_CANDIDATES = 256
"""Top-p first looks at this many likeliest tokens; only a flat distribution needs a full sort."""


class SequenceSampler:
    """What sampling must remember of one sequence."""

    def __init__(self, sequence: NewSequence, vocab_size: int, device: torch.device) -> None:
        self.params = sequence.params
        self._prompt_len = sequence.prompt_len
        self._vocab_size = vocab_size
        self._stop_ids = [token for token in sequence.stop_ids if token < vocab_size]
        self._seen: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        if self.params.has_penalties:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(sequence.history, dtype=torch.int64, device=device)] = True
            self._counts = torch.zeros(vocab_size, dtype=torch.float32, device=device)

    def is_plain(self, position: int) -> bool:
        """Whether the next token is just the highest logit."""
        params = self.params
        return (
            params.is_greedy
            and params.logprobs is None
            and not params.has_penalties
            and not self._stop_is_early(position)
        )

    def draw(self, logits: torch.Tensor, position: int) -> int:
        """The token at ``position``, from ``logits`` ``(vocab,)`` in fp32."""
        params = self.params
        logits = self._adjust(logits, position)
        if params.is_greedy:
            token = int(logits.argmax())
        else:
            assert params.seed is not None, "the driver gives every request a seed"
            probs = _distribution(logits, params.temperature, params.top_k, params.top_p)
            if params.min_p > 0.0:
                probs = torch.where(probs < params.min_p * probs.max(), 0.0, probs)
            token = _inverse_cdf(probs, uniform(params.seed, position))
        if self._seen is not None and self._counts is not None:
            self._seen[token] = True
            self._counts[token] += 1.0
        return token

    def _stop_is_early(self, position: int) -> bool:
        new_tokens = position - self._prompt_len
        return bool(self._stop_ids) and new_tokens < self.params.min_tokens

    def _adjust(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        params = self.params
        if self._seen is not None and self._counts is not None:
            penalty = params.repetition_penalty
            if penalty != 1.0:
                scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
                logits = torch.where(self._seen, scaled, logits)
            logits = logits - params.frequency_penalty * self._counts
            logits = logits - params.presence_penalty * (self._counts > 0)
        if self._stop_is_early(position):
            logits = logits.clone()
            logits[self._stop_ids] = -torch.inf
        return logits


class Sampler:
    """The samplers of every live sequence; lives on the last stage."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._sequences: dict[int, SequenceSampler] = {}

    def add(self, sequence: NewSequence) -> None:
        self._sequences[sequence.seq_id] = SequenceSampler(sequence, self._vocab_size, self._device)

    def remove(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)

    def sample(
        self, logits: torch.Tensor, seq_ids: Sequence[int], positions: Sequence[int]
    ) -> list[SampledToken]:
        """One token a row of ``logits`` ``(rows, vocab)``, each for its place in ``positions``.

        The logits may be of any float type; what is not greedy is computed in fp32.

        Raises:
            StageError: there is a NaN among the logits.
        """
        highest = argmax_rows(logits)
        if -1 in highest:
            raise StageError(
                "The last stage computed logits that are no numbers; the weights are damaged, or "
                "too large for the dtype: try fp32 or bf16."
            )
        sampled = []
        for row, (seq_id, position) in enumerate(zip(seq_ids, positions, strict=True)):
            sampler = self._sequences[seq_id]
            if sampler.is_plain(position):
                sampled.append(SampledToken(seq_id, highest[row]))
                continue
            wide = logits[row].float()
            token = sampler.draw(wide, position)
            sampled.append(_with_logprobs(seq_id, token, wide, sampler.params.logprobs))
        return sampled


def _with_logprobs(seq_id: int, token: int, logits: torch.Tensor, top: int | None) -> SampledToken:
    if top is None:
        return SampledToken(seq_id, token)
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    values, ids = torch.topk(logprobs, min(top, logprobs.numel()))
    return SampledToken(
        seq_id, token, float(logprobs[token]), tuple(ids.tolist()), tuple(values.tolist())
    )


def _distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """Probabilities ``(vocab,)`` in float64 after temperature, top-k and top-p, not normalised."""
    scaled = logits.double() / temperature
    if 0 < top_k < scaled.numel():
        kth = torch.topk(scaled, top_k).values[-1]
        scaled = torch.where(scaled < kth, -torch.inf, scaled)
    probs = torch.softmax(scaled, dim=-1)
    if top_p >= 1.0:
        return probs
    count = min(_FIRST_CANDIDATES, probs.numel())
    values, ids = torch.topk(probs, count)
    if float(values.sum()) < top_p and count < probs.numel():
        values, ids = torch.sort(probs, descending=True, stable=True)
    before = torch.cumsum(values, dim=0) - values
    kept = ids[before < top_p]
    return torch.zeros_like(probs).index_copy_(0, kept, probs[kept])


def _inverse_cdf(probs: torch.Tensor, u: float) -> int:
    """The token whose slice of the cumulated probabilities holds ``u`` of their sum."""
    cumulated = torch.cumsum(probs, dim=0)
    target = cumulated[-1] * u
    index = int(torch.searchsorted(cumulated, target, right=True))
    if index >= probs.numel():  # u * sum rounded up to the sum
        index = int(probs.nonzero()[-1])
    return index
