"""Attention over the paged KV cache on a GPU, with one arithmetic for prompts, chunks and decode.

A context is cut into chunks of ``CHUNK`` positions from 0 on. A program takes a tile of query rows,
a KV head and a chunk, goes through the chunk in blocks of 64 keys (fewer where those do not fit)
with an online softmax (Milakov and Gimelshein, 2018), and leaves sums, their peak and their total;
a second kernel puts the chunks of each row together in ascending order (Flash-Decoding, Dao et al.,
2023). Where a prompt's rows and a single token's meet the same keys they do the same, and hidden
positions add exact zeros: so a row's bits are those of its sequence alone.

Legend: T tokens, H query heads, K KV heads, D head size, N blocks, B tokens a block, R rows of a
slice (a token for each head of a KV head's group), C chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppinfer.kernels.gpu.device import shared_memory
from ppinfer.kernels.gpu.step import CHUNK, ROWS, StepArrays

_BLOCKS = ((64, 2), (64, 1), (32, 1), (16, 1))
"""Keys that are read at once and how many times that may be under way, the best first."""

_MOST_FP32_KEYS = 4096
"""Elements of a block of keys in fp32."""

_WORKSPACE_BYTES = 256 << 20
_LOG2_E = 1.4426950408889634


def paged_attention(
    q_thd: Tensor,
    cache: tuple[Tensor, Tensor],
    step: StepArrays,
    window: int | None,
) -> Tensor:
    """Causal attention of the step's tokens over their sequences' caches; ``(T, H, D)``.

    The step's own keys and values are in the pools ``(N, K, B, D)`` already.
    """
    _, heads, dim = q_thd.shape
    _, kv_heads, block_size, _ = cache[0].shape
    group = heads // kv_heads
    out = torch.empty_like(q_thd)
    size = max(16, triton.next_power_of_2(dim))
    keys, stages = _block_of(size, q_thd)
    tiles_at_once = len(step.tile_rows)
    if not fits_at_once(step.num_rows, step.num_chunks, kv_heads, dim):
        tiles_at_once = max(1, rows_at_once(step.num_chunks, kv_heads, dim) // ROWS)
    for tile in range(0, len(step.tile_rows), tiles_at_once):
        tiles = step.tile_rows[tile : tile + tiles_at_once + 1]
        is_last = len(tiles) <= tiles_at_once
        first_row, end_row = tiles[0], step.num_rows if is_last else tiles[-1]
        num_tiles, rows = len(tiles) - (not is_last), end_row - first_row
        shape = (step.num_chunks, rows, kv_heads)
        sums = q_thd.new_empty((*shape, dim), dtype=torch.float32)
        marks = q_thd.new_empty((2, *shape), dtype=torch.float32)
        _attend[(num_tiles, kv_heads, step.num_chunks)](
            q_thd, *cache, sums, marks, step.tiles, step.sequences, step.tables,
            tile, first_row, rows, group, kv_heads, dim, block_size, step.tables.shape[1],
            window or 0, dim**-0.5 * _LOG2_E,
            HAS_WINDOW=window is not None, ROWS=ROWS, KEYS=keys, CHUNK=CHUNK, SIZE=size,
            num_warps=4, num_stages=stages,
        )  # fmt: skip
        _merge[(rows, kv_heads)](
            sums, marks, step.positions, out, first_row, rows, step.num_chunks, group, kv_heads,
            dim, window or 0, HAS_WINDOW=window is not None, CHUNK=CHUNK, SIZE=size, num_warps=1,
        )  # fmt: skip
    return out


def fits_at_once(rows: int, chunks: int, kv_heads: int, head_dim: int) -> bool:
    """Whether so many query rows of a KV head need no slices."""
    return rows <= rows_at_once(chunks, kv_heads, head_dim)


def rows_at_once(chunks: int, kv_heads: int, head_dim: int) -> int:
    """Query rows of a KV head whose sums the workspace holds."""
    return _WORKSPACE_BYTES // (chunks * kv_heads * head_dim * 4)


def _block_of(size: int, q_thd: Tensor) -> tuple[int, int]:
    """Keys read at once and how often in advance, as the device and the head decide."""
    most = shared_memory(q_thd.device) * 0.9
    if q_thd.dtype == torch.float32:  # each product is written out, and long ones compile for ever
        most = min(most, 2 * 4 * _MOST_FP32_KEYS)
    fitting = (b for b in _BLOCKS if 2 * b[0] * b[1] * size * q_thd.element_size() <= most)
    return next(fitting, _BLOCKS[-1])


_OF_THE_STEP = ["first_tile", "first_row", "rows", "chunks", "table_width"]
"""Numbers that no variant of a kernel is compiled for."""


@triton.jit(do_not_specialize=_OF_THE_STEP)
def _attend(
    q, k_pool, v_pool, sums, marks, tiles, sequences, tables,
    first_tile, first_row, rows, group, kv_heads, head_dim, block_size, table_width, window, scale,
    HAS_WINDOW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """``sums`` (C, R, K, D), ``marks`` (2, C, R, K): peaks, then totals."""
    tile, kv_head, chunk = first_tile + tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(tiles + tile * 3)
    row_in_sequence = tl.load(tiles + tile * 3 + 1)
    row_of_step = tl.load(tiles + tile * 3 + 2)
    start, length = tl.load(sequences + sequence * 2), tl.load(sequences + sequence * 2 + 1)
    last_token = tl.minimum((row_in_sequence + ROWS - 1) // group, length - 1)
    end = tl.minimum(start + last_token + 1, (chunk + 1) * CHUNK)
    if chunk * CHUNK >= end:
        return
    if HAS_WINDOW:  # noqa: SIM102 - decided when it is compiled
        if (chunk + 1) * CHUNK <= start + row_in_sequence // group - window + 1:
            return  # no row sees any of it, and none asks for it
    r = tl.arange(0, ROWS)
    token = (row_in_sequence + r) // group
    is_row = token < length
    position = start + token
    d = tl.arange(0, SIZE)
    is_d = d < head_dim
    row = row_of_step + r
    at_q = ((row // group) * kv_heads + kv_head) * group + row % group
    queries = tl.load(
        q + at_q.to(tl.int64)[:, None] * head_dim + d[None, :],
        mask=is_row[:, None] & is_d[None, :], other=0.0,
    )  # fmt: skip
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, SIZE), tl.float32)
    table = tables + sequence * table_width
    for at in range(chunk * CHUNK, end, KEYS):
        key = at + tl.arange(0, KEYS)
        is_key = key < end
        block = tl.load(table + key // block_size, mask=is_key, other=0).to(tl.int64)
        place = ((block * kv_heads + kv_head) * block_size + key % block_size) * head_dim
        k = tl.load(
            k_pool + place[None, :] + d[:, None], mask=is_key[None, :] & is_d[:, None], other=0.0
        )
        v = tl.load(
            v_pool + place[:, None] + d[None, :], mask=is_key[:, None] & is_d[None, :], other=0.0
        )
        scores = tl.dot(queries, k, input_precision="ieee") * scale
        is_seen = key[None, :] <= position[:, None]
        if HAS_WINDOW:
            is_seen = is_seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        shrunk = tl.exp2(peak - finite)
        total = total * shrunk + tl.sum(weights, axis=1)
        mixed = mixed * shrunk[:, None]
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        peak = higher
    out_row = (chunk.to(tl.int64) * rows + row - first_row) * kv_heads + kv_head
    tl.store(
        sums + out_row[:, None] * head_dim + d[None, :], mixed,
        mask=is_row[:, None] & is_d[None, :],
    )  # fmt: skip
    totals = tl.num_programs(2).to(tl.int64) * rows * kv_heads
    tl.store(marks + out_row, peak, mask=is_row)
    tl.store(marks + totals + out_row, total, mask=is_row)


@triton.jit(do_not_specialize=_OF_THE_STEP)
def _merge(
    sums, marks, positions, out, first_row, rows, chunks, group, kv_heads, head_dim, window,
    HAS_WINDOW: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One row: its chunks into ``out`` (T, H, D)."""
    row, kv_head = first_row + tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + row // group)
    first_chunk = 0
    if HAS_WINDOW:
        first_chunk = tl.maximum(position - window + 1, 0) // CHUNK
    d = tl.arange(0, SIZE)
    inside = d < head_dim
    peak = float("-inf")
    total = 0.0
    mixed = tl.zeros((SIZE,), tl.float32)
    chunk_size = rows.to(tl.int64) * kv_heads
    at = first_chunk * chunk_size + (row - first_row) * kv_heads + kv_head
    for _ in range(first_chunk, position // CHUNK + 1):
        found, found_total = tl.load(marks + at), tl.load(marks + chunks * chunk_size + at)
        found_mixed = tl.load(sums + at * head_dim + d, mask=inside, other=0.0)
        at += chunk_size
        higher = tl.maximum(peak, found)
        before, now = tl.exp2(peak - higher), tl.exp2(found - higher)
        total = total * before + found_total * now
        mixed = mixed * before + found_mixed * now
        peak = higher
    at_out = ((row // group).to(tl.int64) * kv_heads + kv_head) * group + row % group
    tl.store(out + at_out * head_dim + d, (mixed / total).to(out.dtype.element_ty), mask=inside)
