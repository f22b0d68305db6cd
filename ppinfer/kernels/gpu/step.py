"""One step's tokens and blocks as arrays on a GPU, sent there in one copy.

Legend: T tokens, Q sequences, t tiles of query rows, W blocks of the longest table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROWS = 16
"""Query rows of a tile: tokens of one sequence times the heads that share a KV head."""

CHUNK = 512
"""Positions of a context that one program reads; every block size divides it."""


ALIGNED = 4
"""Each array begins at a multiple of so many numbers: Triton compiles anew for other addresses."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What ``StepArrays`` has, on the host and in one piece."""

    numbers: npt.NDArray[np.int32]
    shapes: tuple[tuple[int, ...], ...]
    tile_rows: list[int]
    num_rows: int
    num_chunks: int

    def send(self, device: torch.device) -> Tensor:
        numbers = torch.from_numpy(self.numbers)
        if device.type != "cuda":
            return numbers
        return numbers.pin_memory().to(device, non_blocking=True)


class StepArrays:
    """Where one step's tokens are; all are int32 and views of ``numbers``.

    Attributes:
        positions: (T,) of each token in its sequence.
        slots: (T,) where its key and value go: block * block_size + place in the block, or -1.
        tiles: (t, 3) each tile's sequence, its first row among that sequence's rows of this step,
            and among all rows of the step.
        sequences: (Q, 2) position of the first token, and how many there are.
        tables: (Q, W) blocks.
        tile_rows: the last column of ``tiles``, on the host.
        num_rows: query rows of a KV head, all tokens together.
        num_chunks: chunks of the longest context.
    """

    def __init__(self, packed: Packed, numbers: Tensor) -> None:
        self.tile_rows, self.num_rows = packed.tile_rows, packed.num_rows
        self.num_chunks = packed.num_chunks
        views: list[Tensor] = []
        at = 0
        for shape in packed.shapes:
            size = int(np.prod(shape))
            views.append(numbers[at : at + size].view(shape))
            at += -(-size // ALIGNED) * ALIGNED
        self.positions, self.slots, self.tiles, self.sequences, self.tables = views


def pack(
    starts: Sequence[int],
    lengths: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    group: int,
) -> Packed:
    """Any step; ``group`` is how many heads share a KV head."""
    first, count = np.array(starts, np.int32), np.array(lengths, np.int32)
    ends = first + count
    tables = _padded(ends, block_tables, block_size, -(-int(ends.max()) // block_size), len(first))
    sequence = np.repeat(np.arange(len(first)), count)
    offset = np.cumsum(count) - count
    positions = np.arange(len(sequence)) - offset[sequence] + first[sequence]
    slots = tables[sequence, positions // block_size] * block_size + positions % block_size
    num_tiles = -(-count * group // ROWS)
    of_tile = np.repeat(np.arange(len(first)), num_tiles)
    local = np.arange(len(of_tile)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    tiles = np.stack((of_tile, local * ROWS, offset[of_tile] * group + local * ROWS), axis=1)
    sequences = np.stack((first, count), axis=1)
    chunks = -(-int(ends.max()) // CHUNK)
    return _packed((positions, slots, tiles, sequences, tables), group, chunks)


def pack_decode(
    starts: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    group: int,
    num_sequences: int,
    num_chunks: int,
) -> Packed:
    """A step of one token a sequence, padded to so many sequences, with room for so many chunks.

    What pads it attends to one position of any block and writes nothing.
    """
    missing = num_sequences - len(starts)
    first = np.array([*starts, *[0] * missing], np.int32)
    width = num_chunks * CHUNK // block_size
    tables = _padded(first[: len(starts)] + 1, block_tables, block_size, width, num_sequences)
    rows = np.arange(num_sequences)
    slots = tables[rows, first // block_size] * block_size + first % block_size
    slots[len(starts) :] = -1
    per_token = np.arange(0, group, ROWS)
    tiles = np.stack(
        (
            np.repeat(rows, len(per_token)),
            np.tile(per_token, num_sequences),
            (rows[:, None] * group + per_token).reshape(-1),
        ),
        axis=1,
    )
    sequences = np.stack((first, np.ones_like(first)), axis=1)
    return _packed((first, slots, tiles, sequences, tables), group, num_chunks)


def _packed(parts: tuple[npt.NDArray[np.integer], ...], group: int, num_chunks: int) -> Packed:
    padded = [np.pad(part.reshape(-1), (0, -part.size % ALIGNED)) for part in parts]
    numbers = np.concatenate(padded, dtype=np.int32)
    shapes = tuple(part.shape for part in parts)
    return Packed(numbers, shapes, parts[2][:, 2].tolist(), len(parts[0]) * group, num_chunks)


def _padded(
    ends: npt.NDArray[np.int32],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    width: int,
    rows: int,
) -> npt.NDArray[np.int32]:
    """The blocks of each sequence up to its end, and zeros."""
    tables = np.zeros((rows, width), np.int32)
    used = (-(-ends // block_size)).tolist()
    for row, table, n in zip(tables, block_tables, used, strict=False):
        row[:n] = table[:n]
    return tables
