"""Which query rows meet which cached positions in one step: index arithmetic, no attention.

Built once a step and used by every layer, on devices without native kernels; ``attention.py``
explains the shapes. NumPy does the work, since the arrays are small and torch's overhead a call is
larger.

Legend: T tokens, K KV heads, t tiles, p pairs, u splits that a piece reads, R rows, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppinfer.kernels.batch import SPLIT, AttentionShape

ROWS = 8
"""Query rows of a tile. More would waste work where each sequence has one token."""

_Ints: TypeAlias = npt.NDArray[np.int64]

# On a CPU a piece of keys should stay in the second-level cache, and a group's scores near it.
_CPU_PIECE_BYTES, _CPU_GROUP_MATRICES = 1 << 20, 1024
_GPU_PIECE_BYTES, _GPU_GROUP_MATRICES = 256 << 20, 32768


@dataclass(frozen=True, slots=True)
class Piece:
    """Pairs whose keys are gathered at once.

    ``block_rows`` picks (block, KV head) rows of the pool, u * K * blocks a split of them. Where
    several pairs read one split, ``split_of_matrix`` (p * K) says which of those each one takes.
    """

    first_pair: int
    last_pair: int
    block_rows: Tensor
    split_of_matrix: Tensor | None


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Tiles that are computed together, those with most splits first.

    Pairs are ordered by round, then by tile; round j holds the j-th split of every tile that has
    more than j, as ``(first pair, last pair)``. ``masks`` has ``(first, last, (p, 1, R, S))``.
    """

    first_tile: int
    num_tiles: int
    rounds: list[tuple[int, int]]
    masks: list[tuple[int, int, Tensor]]
    pieces: list[Piece]
    tile_of_pair: Tensor | None  # (p,); None where pair i belongs to tile i


@dataclass(frozen=True, slots=True)
class TilePlan:
    """All tiles of a step under one window.

    ``query_rows`` (t * K * R) picks rows of queries viewed as (T * heads, size), padding included;
    ``result_rows`` (T * heads) picks them back out of the tiles' results.
    """

    query_rows: Tensor
    result_rows: Tensor
    groups: list[TileGroup]


class PagedIndex:
    """Where one step's tokens are in the cache, and the tiles in which they attend.

    Attributes:
        positions: (T,) position of each token in its sequence.
        slots: (T * K,) rows of the pool viewed as (N * K * B, D), token by token.
        fresh_blocks: blocks whose first token this step writes, or ``None`` where there are none.
    """

    def __init__(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        shape: AttentionShape,
        device: torch.device,
    ) -> None:
        self.num_kv_heads = shape.num_kv_heads
        self._starts, self._lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
        self._tables = _padded(self._starts + self._lengths, block_tables, block_size)
        self._block_size, self._shape, self._device = block_size, shape, device
        self._plans: dict[int | None, TilePlan] = {}
        # Of each sequence's first token in the batch.
        self._offsets = np.cumsum(self._lengths) - self._lengths
        sequence = np.repeat(np.arange(len(starts)), self._lengths)
        positions = np.arange(len(sequence)) - self._offsets[sequence] + self._starts[sequence]
        blocks, inside = self._tables[sequence, positions // block_size], positions % block_size
        heads = np.arange(shape.num_kv_heads)
        slots = (blocks[:, None] * shape.num_kv_heads + heads) * block_size + inside[:, None]
        fresh = blocks[inside == 0]
        self.positions = self._tensor(positions)
        self.slots = self._tensor(slots.reshape(-1))
        self.fresh_blocks = self._tensor(fresh) if len(fresh) else None

    def tiles(self, window: int | None) -> TilePlan:
        """The tiles under one window, made when first asked for."""
        plan = self._plans.get(window)
        if plan is None:
            plan = self._plans[window] = self._plan(window)
        return plan

    # ---------------------------------------------------------------- building

    def _plan(self, window: int | None) -> TilePlan:
        group_size, heads = self._shape.group_size, self.num_kv_heads
        rows = self._lengths * group_size
        num_tiles = -(-rows // ROWS)
        sequence = np.repeat(np.arange(len(rows)), num_tiles)
        local = np.arange(len(sequence)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
        row_tr = local[:, None] * ROWS + np.arange(ROWS)
        real_tr = row_tr < rows[sequence][:, None]
        row_tr = np.minimum(row_tr, rows[sequence][:, None] - 1)  # padding repeats the last row
        position_tr = self._starts[sequence][:, None] + row_tr // group_size
        lowest = 0 if window is None else np.maximum(position_tr[:, 0] - window + 1, 0)
        first_split = np.zeros_like(sequence) + lowest // SPLIT
        counts = position_tr[:, -1] // SPLIT - first_split + 1

        limits = self._limits()
        groups: list[TileGroup] = []
        order: list[_Ints] = []
        by_count = np.argsort(-counts, kind="stable")
        for tiles in _cut(by_count, counts, max(1, limits[1] // heads)):
            if counts[tiles].sum() * heads == 1:
                tiles = np.repeat(tiles, 2)  # a batch of one matrix product is another routine
            first_tile = sum(len(earlier) for earlier in order)
            order.append(tiles)
            parts = (sequence[tiles], first_split[tiles], counts[tiles], position_tr[tiles])
            groups.append(self._group(first_tile, *parts, window, limits[0]))
        ordered = np.concatenate(order)
        token_tr = self._offsets[sequence][:, None] + row_tr // group_size
        head_tkr = np.arange(heads)[:, None] * group_size + (row_tr % group_size)[:, None, :]
        queries = (token_tr[:, None, :] * (heads * group_size) + head_tkr)[ordered]
        results = np.empty(int(rows.sum()) * heads, np.int64)
        is_real = np.broadcast_to(real_tr[ordered][:, None, :], queries.shape)
        results[queries[is_real]] = np.flatnonzero(is_real)
        return TilePlan(self._tensor(queries.reshape(-1)), self._tensor(results), groups)

    def _group(
        self,
        first_tile: int,
        sequence: _Ints,
        first_split: _Ints,
        counts: _Ints,
        position_tr: _Ints,
        window: int | None,
        piece_matrices: int,
    ) -> TileGroup:
        round_of_pair, tile_of_pair = np.nonzero(counts > np.arange(counts[0])[:, None])
        split = first_split[tile_of_pair] + round_of_pair
        ends = np.cumsum(np.bincount(round_of_pair)).tolist()
        rounds = list(zip([0, *ends[:-1]], ends, strict=True))
        needs_mask = split * SPLIT + SPLIT - 1 > position_tr[tile_of_pair, 0]
        if window is not None:
            needs_mask |= split * SPLIT <= position_tr[tile_of_pair, -1] - window
        masks = []
        for first, last in rounds:
            if needs_mask[first:last].any():
                key = (split[first:last, None] * SPLIT + np.arange(SPLIT))[:, None, None, :]
                row = position_tr[: last - first][:, None, :, None]
                hidden = key > row
                if window is not None:
                    hidden |= key <= row - window
                mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
                masks.append((first, last, self._tensor(mask)))
        num_pairs = len(split)
        num_pieces = -(-num_pairs * self.num_kv_heads // piece_matrices)
        cuts = [i * num_pairs // num_pieces for i in range(num_pieces + 1)]
        pieces = [
            self._piece(first, last, sequence[tile_of_pair[first:last]], split[first:last])
            for first, last in pairwise(cuts)
        ]
        index = self._tensor(tile_of_pair) if len(rounds) > 1 else None
        return TileGroup(first_tile, len(counts), rounds, masks, pieces, index)

    def _piece(self, first: int, last: int, sequence: _Ints, split: _Ints) -> Piece:
        heads = np.arange(self.num_kv_heads)
        per_split = SPLIT // self._block_size
        key = sequence * self._tables.shape[1] + split
        unique, where, inverse = np.unique(key, return_index=True, return_inverse=True)
        split_of_matrix = None
        if len(unique) < len(key):
            sequence, split = sequence[where], split[where]
            split_of_matrix = self._tensor((inverse[:, None] * len(heads) + heads).reshape(-1))
        columns = split[:, None] * per_split + np.arange(per_split)
        blocks = self._tables[sequence[:, None], columns]
        rows = blocks[:, None, :] * len(heads) + heads[:, None]
        return Piece(first, last, self._tensor(rows.reshape(-1)), split_of_matrix)

    def _limits(self) -> tuple[int, int]:
        """Most matrices of a piece, at least 4, and of a group."""
        on_cpu = self._device.type == "cpu"
        size = _CPU_PIECE_BYTES if on_cpu else _GPU_PIECE_BYTES
        matrices = max(4, size // (SPLIT * self._shape.head_dim * 4))
        return matrices, _CPU_GROUP_MATRICES if on_cpu else _GPU_GROUP_MATRICES

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _cut(order: _Ints, counts: _Ints, most_pairs: int) -> list[_Ints]:
    """``order`` in runs of tiles with about ``most_pairs`` pairs each, at least one tile."""
    total = np.cumsum(counts[order])
    if total[-1] <= most_pairs:
        return [order]
    run = (total - 1) // most_pairs
    return np.split(order, np.flatnonzero(np.diff(run)) + 1)


def _padded(ends: _Ints, block_tables: Sequence[Sequence[int]], block_size: int) -> _Ints:
    """The blocks that each sequence needs, in rows of whole splits."""
    used = -(-ends // block_size)
    per_split = SPLIT // block_size
    tables = np.empty((len(ends), -(-int(used.max()) // per_split) * per_split), np.int64)
    for row, table, n in zip(tables, block_tables, used.tolist(), strict=True):
        row[:n] = table[:n]
        row[n:] = row[0]  # masked; a block of its own, so that no other sequence can reach it
    return tables
