"""A real check of what the README promises: a row's bits do not depend on its company.

One linear layer and one attention, with the project's own kernels, on random data: rows alone, in
part of a batch and in the whole of it; a sequence alone, beside another, and in chunks.

Legend: T tokens, H query heads, K KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppinfer.kernels.attention import AttentionBatch, paged_attention, write_kv
from ppinfer.kernels.linear import Linear

_BLOCK, _TABLE = 16, 40  # tokens of a block, blocks of a sequence
_LONG, _SHORT = 600, 50  # tokens of the two sequences


@dataclass(frozen=True)
class _Shape:
    num_kv_heads: int = 3
    group_size: int = 3
    head_dim: int = 64


@dataclass(frozen=True)
class _Piece:
    """Tokens ``start`` to ``end`` of a sequence, whose blocks begin at ``first_block``."""

    q_thd: Tensor
    k_tkd: Tensor
    v_tkd: Tensor
    start: int
    end: int
    first_block: int


def rows_are_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether every way of computing the same rows gave the same bits."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    tokens = _LONG + _SHORT
    return _linear_is_exact(random(160, 1100), Linear(random(1536, 1100))) and _attention_is_exact(
        random(tokens, 9, 64), random(tokens, 3, 64), random(tokens, 3, 64)
    )


def _linear_is_exact(x: Tensor, linear: Linear) -> bool:
    whole = linear(x)
    parts = [(0, 1), (5, 6), (3, 10), (0, 32), (31, 64), (0, 65), (20, 149)]
    return all(torch.equal(linear(x[a:b]), whole[a:b]) for a, b in parts)


def _attention_is_exact(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """A long sequence alone, in chunks of 7 and token by token at its end, and beside another."""

    def piece(start: int, end: int) -> _Piece:
        return _Piece(q[:_LONG], k[:_LONG], v[:_LONG], start, end, 0)

    other = _Piece(q[_LONG:], k[_LONG:], v[_LONG:], 0, _SHORT, _TABLE)
    alone = _attend([[piece(0, _LONG)]])
    late, last = _LONG - 150, _LONG - 10
    sevens = [[piece(at, min(at + 7, _LONG))] for at in range(late, _LONG, 7)]
    tokens = [[piece(0, last)], *([piece(at, at + 1)] for at in range(last, _LONG))]
    ways = (
        _attend([[piece(0, late)], *sevens]),
        _attend(tokens),
        _attend([[piece(0, _LONG), other]])[:_LONG],
    )
    return all(torch.equal(alone, way) for way in ways)


def _attend(steps: Sequence[Sequence[_Piece]]) -> Tensor:
    """Run the steps one after the other against one cache; all their rows."""
    q = steps[0][0].q_thd
    shape = _Shape()
    size = (2 * _TABLE, shape.num_kv_heads, _BLOCK, shape.head_dim)
    cache = (q.new_zeros(size), q.new_zeros(size))
    rows = []
    for step in steps:
        batch = AttentionBatch.build(
            [piece.start for piece in step],
            [piece.end - piece.start for piece in step],
            [range(piece.first_block, piece.first_block + _TABLE) for piece in step],
            _BLOCK,
            config=shape,
            device=q.device,
        )
        parts = [
            torch.cat([getattr(piece, name)[piece.start : piece.end] for piece in step])
            for name in ("q_thd", "k_tkd", "v_tkd")
        ]
        write_kv(parts[1], parts[2], cache, batch)
        rows.append(paged_attention(parts[0], cache, batch))
    return torch.cat(rows)
