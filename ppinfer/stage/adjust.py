"""Changes of single logits before a draw: penalties, biases, tokens that are forbidden.

Only tokens that occurred or were named change, so lists of them are kept, not vectors over the
vocabulary. ``fill`` hands them to the native kernels, ``apply`` does the same in PyTorch, with the
same roundings.
"""

from __future__ import annotations

from array import array

import torch

from ppinfer.kernels.sample import Settings
from ppinfer.messages import NewSequence


class Adjustments:
    """Those of one sequence, as it grows."""

    def __init__(self, sequence: NewSequence, vocab_size: int) -> None:
        params = self._params = sequence.params
        self._prompt_len = sequence.prompt_len
        self._stop_ids = array("i", (token for token in sequence.stop_ids if token < vocab_size))
        bias = params.logit_bias or {}
        self._biased, self._biases = array("i", bias.keys()), array("f", bias.values())
        self._seen = array("i", dict.fromkeys(sequence.history[: sequence.prompt_len]))
        self._counts = array("f", bytes(4 * len(self._seen)))  # in the output
        self._places = {token: place for place, token in enumerate(self._seen)}
        for token in sequence.history[sequence.prompt_len :]:
            self.add(token)

    def is_empty(self, position: int) -> bool:
        """Whether the logits at ``position`` stay as they are."""
        return not (self._params.has_penalties or self._biased or self._forbids(position))

    def add(self, token: int) -> None:
        """``token`` was drawn."""
        if not self._params.has_penalties:
            return
        place = self._places.setdefault(token, len(self._seen))
        if place == len(self._seen):
            self._seen.append(token)
            self._counts.append(0.0)
        self._counts[place] += 1.0

    def fill(self, settings: Settings) -> None:
        """What does not depend on the position; to be called again after ``add``."""
        params = self._params
        settings.seen, settings.num_seen = _address(self._seen)
        settings.counts, _ = _address(self._counts)
        settings.biased, settings.num_biased = _address(self._biased)
        settings.biases, _ = _address(self._biases)
        settings.repetition = params.repetition_penalty
        settings.presence = params.presence_penalty
        settings.frequency = params.frequency_penalty

    def fill_forbidden(self, settings: Settings, position: int) -> None:
        settings.forbidden, count = _address(self._stop_ids)
        settings.num_forbidden = count if self._forbids(position) else 0

    def apply(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """A changed copy of ``logits`` ``(vocab,)``, in fp32."""
        params = self._params
        logits = logits.float().clone()
        if self._seen:
            seen, counts = _tensor(self._seen, logits.device), _tensor(self._counts, logits.device)
            values = logits[seen]
            penalty = params.repetition_penalty
            if penalty != 1.0:
                values = torch.where(values > 0, values / penalty, values * penalty)
            values = values - params.frequency_penalty * counts
            logits[seen] = values - params.presence_penalty * (counts > 0)
        if self._biased:
            logits[_tensor(self._biased, logits.device)] += _tensor(self._biases, logits.device)
        if self._forbids(position):
            logits[_tensor(self._stop_ids, logits.device)] = -torch.inf
        return logits

    def _forbids(self, position: int) -> bool:
        new_tokens = position - self._prompt_len
        return bool(self._stop_ids) and new_tokens < self._params.min_tokens


def _address(values: array[int] | array[float]) -> tuple[int, int]:
    """Where they lie until the next is appended, and how many they are."""
    return values.buffer_info()


def _tensor(values: array[int] | array[float], device: torch.device) -> torch.Tensor:
    kind = torch.int32 if values.typecode == "i" else torch.float32
    return torch.frombuffer(values, dtype=kind).clone().to(device)
