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

_BLOCK, _TABLE = 16, 16  # tokens of a block, blocks of a sequence


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

    return _linear_is_exact(random(64, 576), Linear(random(1536, 576))) and _attention_is_exact(
        random(200, 9, 64), random(200, 3, 64), random(200, 3, 64)
    )


def _linear_is_exact(x: Tensor, linear: Linear) -> bool:
    whole = linear(x)
    parts = [(0, 1), (5, 6), (3, 10), (0, 32), (31, 64)]
    return all(torch.equal(linear(x[a:b]), whole[a:b]) for a, b in parts)


def _attention_is_exact(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """A sequence of 150 tokens alone, in chunks of 7, and beside another of 50."""

    def piece(start: int, end: int) -> _Piece:
        return _Piece(q[:150], k[:150], v[:150], start, end, 0)

    other = _Piece(q[150:], k[150:], v[150:], 0, 50, _TABLE)
    alone = _attend([[piece(0, 150)]])
    chunks = [[piece(start, min(start + 7, 150))] for start in range(0, 150, 7)]
    tokens = [[piece(0, 140)], *([piece(at, at + 1)] for at in range(140, 150))]
    together = _attend([[piece(0, 150), other]])[:150]
    return all(torch.equal(alone, way) for way in (_attend(chunks), _attend(tokens), together))


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
