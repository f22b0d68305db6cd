"""Rotary positions: the cosine and sine of every position's angles.

Frequencies follow ``transformers.modeling_rope_utils`` operation by operation, since an angle grows
with the position and a last bit of its frequency would show.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppinfer.models.rope_config import RopeConfig

_STEP = 1024  # positions added at a time


class RotaryTable:
    """Cosines and sines of positions 0, 1, 2, …, made as far as they have been asked for.

    They are made in steps of one size from 0 on, so a position's values do not depend on how far
    the table reaches. The sine of the first half of a head is negated, as ``rotate`` needs it.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frequencies = inverse_frequencies(config, head_dim)
        self._factor = config.attention_factor
        self._cos = torch.empty((0, head_dim), dtype=dtype, device=device)
        self._sin = torch.empty((0, head_dim), dtype=dtype, device=device)

    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each ``(n, head_dim)`` with at least ``num_positions`` rows."""
        while self._cos.shape[0] < num_positions:
            self._grow()
        return self._cos, self._sin

    def at(self, positions: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
        """Two ``(T, 1, head_dim)`` for positions (T,), all below ``num_positions``."""
        cos, sin = self.tables(num_positions)
        return cos.index_select(0, positions).unsqueeze(1), sin.index_select(
            0, positions
        ).unsqueeze(1)

    def _grow(self) -> None:
        first = self._cos.shape[0]
        positions = torch.arange(first, first + _STEP, dtype=torch.float32)
        # The angle is rounded to fp32 as in the reference; what follows is then exact.
        angles = (positions[:, None] * self._frequencies).double()
        cos, sin = angles.cos(), angles.sin()
        halves = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self._cos, self._sin = (
            torch.cat((old, (new.float() * self._factor).to(old)))
            for old, new in zip((self._cos, self._sin), halves, strict=True)
        )


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians a position for each pair of a head, fp32 ``(head_dim / 2,)``."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    powers = config.theta**exponents
    inverse = 1.0 / powers
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "factors":
        return inverse / torch.tensor(config.factors, dtype=torch.float32)
    if config.kind == "llama3":
        return _llama3(config, inverse)
    if config.kind == "yarn":
        return _yarn(config, head_dim, powers)
    return inverse


def _llama3(config: RopeConfig, inverse: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between interpolated."""
    length, factor = config.original_max_position, config.factor
    longest, shortest = length / config.low_freq_factor, length / config.high_freq_factor
    waves = 2 * math.pi / inverse
    stretched = torch.where(waves > longest, inverse / factor, inverse)
    smooth = (length / waves - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    between = (1 - smooth) * stretched / factor + smooth * stretched
    return torch.where((waves < shortest) | (waves > longest), stretched, between)


def _yarn(config: RopeConfig, head_dim: int, powers: Tensor) -> Tensor:
    """YaRN (Peng et al. 2023, section 3.2): a ramp between stretched and kept frequencies."""

    def pair_that_turns(times: float) -> float:
        turns = config.original_max_position / (times * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = pair_that_turns(config.beta_fast), pair_that_turns(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as in the reference, against a division by zero
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return (1.0 / (config.factor * powers)) * (1 - kept) + (1.0 / powers) * kept
