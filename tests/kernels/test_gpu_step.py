"""A step's arrays for a GPU: where each token is, in numbers that any machine can check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.kernels.gpu.step import ALIGNED, CHUNK, ROWS, Packed, StepArrays, pack, pack_decode

CPU = torch.device("cpu")


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]], int, int]:
    """Starts, lengths, tables, block size and group."""
    block_size = draw(st.sampled_from([16, 32, 128]))
    starts = draw(st.lists(st.integers(0, 1300), min_size=1, max_size=6))
    lengths = [draw(st.integers(1, 50)) for _ in starts]
    free = list(range(1000))
    tables = []
    for start, length in zip(starts, lengths, strict=True):
        needed = -(-(start + length) // block_size) + draw(st.integers(0, 2))
        tables.append([free.pop(draw(st.integers(0, 20))) for _ in range(needed)])
    return starts, lengths, tables, block_size, draw(st.sampled_from([1, 3, 8, 40]))


def arrays(packed: Packed) -> StepArrays:
    return StepArrays(packed, packed.send(CPU))


def check_tokens(
    found: StepArrays, starts: Sequence[int], lengths: Sequence[int],
    tables: Sequence[Sequence[int]], block_size: int,
) -> None:  # fmt: skip
    token = 0
    for sequence, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        assert found.sequences[sequence].tolist() == [start, length]
        used = -(-(start + length) // block_size)
        assert found.tables[sequence, :used].tolist() == list(tables[sequence][:used])
        for position in range(start, start + length):
            slot = tables[sequence][position // block_size] * block_size + position % block_size
            assert (found.positions[token], found.slots[token]) == (position, slot)
            token += 1


def check_tiles(found: StepArrays, lengths: Sequence[int], group: int) -> None:
    """Every row of every sequence is in one tile."""
    seen = []
    for sequence, row_in_sequence, row_of_step in found.tiles.tolist():
        first = sum(lengths[:sequence]) * group
        assert row_of_step == first + row_in_sequence
        end = min(row_of_step + ROWS, first + lengths[sequence] * group)
        seen += range(row_of_step, end)
    assert seen == list(range(sum(lengths) * group))
    assert found.tile_rows == found.tiles[:, 2].tolist()
    assert found.num_rows == len(seen)


@given(steps())
def test_any_step(step: tuple[list[int], list[int], list[list[int]], int, int]) -> None:
    starts, lengths, tables, block_size, group = step
    found = arrays(pack(starts, lengths, tables, block_size, group))
    check_tokens(found, starts, lengths, tables, block_size)
    check_tiles(found, lengths, group)
    whole = found.positions.storage_offset()
    for part in (found.positions, found.slots, found.tiles, found.sequences, found.tables):
        assert (part.storage_offset() - whole) % ALIGNED == 0
    longest = max(start + length for start, length in zip(starts, lengths, strict=True))
    assert (found.num_chunks - 1) * CHUNK < longest <= found.num_chunks * CHUNK


@given(steps(), st.integers(0, 3))
def test_a_padded_decode_step(
    step: tuple[list[int], list[int], list[list[int]], int, int], missing: int
) -> None:
    starts, _, tables, block_size, group = step
    rows, lengths = len(starts) + missing, [1] * len(starts)
    found = arrays(pack_decode(starts, tables, block_size, group, rows, 4))
    check_tokens(found, starts, lengths, tables, block_size)
    check_tiles(found, [1] * rows, group)
    assert found.slots[len(starts) :].tolist() == [-1] * missing
    assert found.tables.shape == (rows, 4 * CHUNK // block_size)
    assert found.num_chunks == 4
