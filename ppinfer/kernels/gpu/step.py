"""One step's tokens and blocks as arrays on a GPU, sent there in one copy.

Legend: T tokens, Q sequences, t tiles of query rows, W blocks of the longest table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ROWS = 16
"""Query rows of a tile: tokens of one sequence times the heads that share a KV head."""

CHUNK = 512
"""Positions of a context that one program reads; every block size divides it."""


class StepArrays:
    """All are int32 and views of one tensor.

    Attributes:
        positions: (T,) of each token in its sequence.
        slots: (T,) where its key and value go: block * block_size + place in the block.
        tiles: (t, 3) each tile's sequence, its first row among that sequence's rows of this step,
            and among all rows of the step.
        sequences: (Q, 2) position of the first token, and how many there are.
        tables: (Q, W) blocks.
        num_rows: query rows of a KV head, all tokens together.
        num_chunks: chunks of the longest context.
    """

    def __init__(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        group: int,
        device: torch.device,
    ) -> None:
        first, count = np.array(starts, np.int32), np.array(lengths, np.int32)
        ends = first + count
        used = -(-ends // block_size)
        tables = np.zeros((len(first), int(used.max())), np.int32)
        for row, table, n in zip(tables, block_tables, used.tolist(), strict=True):
            row[:n] = table[:n]
        sequence = np.repeat(np.arange(len(first)), count)
        offset = np.cumsum(count) - count
        positions = np.arange(len(sequence)) - offset[sequence] + first[sequence]
        slots = tables[sequence, positions // block_size] * block_size + positions % block_size
        num_tiles = -(-count * group // ROWS)
        of_tile = np.repeat(np.arange(len(first)), num_tiles)
        local = np.arange(len(of_tile)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
        tiles = np.stack((of_tile, local * ROWS, offset[of_tile] * group + local * ROWS), axis=1)
        self.num_rows = len(sequence) * group
        self.num_chunks = -(-int(ends.max()) // CHUNK)
        self.tile_rows = tiles[:, 2]
        parts = (positions, slots, tiles, np.stack((first, count), axis=1), tables)
        whole = torch.from_numpy(
            np.concatenate([part.reshape(-1) for part in parts], dtype=np.int32)
        )
        if device.type == "cuda":
            whole = whole.pin_memory().to(device, non_blocking=True)
        views: list[Tensor] = []
        at = 0
        for part in parts:
            views.append(whole[at : at + part.size].view(part.shape))
            at += part.size
        self.positions, self.slots, self.tiles, self.sequences, self.tables = views
