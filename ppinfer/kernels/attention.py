"""Attention over the paged KV cache, with one arithmetic for every kind of step.

A row of the result depends on its own sequence alone, bit for bit: not on who shares the batch,
nor on whether its token came in a prompt, in a chunk of one, or alone. ``native/src/attention.h``
is how that is done in C++ and ``gpu/attention.py`` in Triton; the rest of this file is how it is
done in plain PyTorch. What is in a pool, and in which order, is the affair of whichever wrote it.

``PagedIndex`` (in ``paged_batch.py``) says which matrices meet; all work is done on matrices of one
fixed shape:

- a tile is 8 query rows of one sequence and one KV head: tokens times the heads that share it;
- a split is 128 positions of a sequence's context, from a multiple of 128 on;
- for each (tile, split) pair: scores (8, 128), their maximum, powers of two, sums, and the product
  with V, each a matrix product of fixed shape or a reduction of fixed length;
- a tile's splits are added up in ascending order.

Masked positions have a score of minus infinity and contribute exact zeros, so it changes nothing
how far a tile's pairs reach past what one of its rows may see. That needs finite values in the
whole cache: it starts as zeros, and a block's unwritten rest is cleared with its first token.

Legend: T tokens, H query heads, K KV heads, D head size, N blocks, B tokens a block, t tiles,
p pairs, R rows a tile, S positions a split.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.kernels.batch import SPLIT, AttentionBatch
from ppinfer.kernels.elementwise import exp2_
from ppinfer.kernels.gpu import device as gpu
from ppinfer.kernels.native import library
from ppinfer.kernels.native.library import LayerData
from ppinfer.kernels.paged_batch import ROWS, TileGroup

__all__ = ["AttentionBatch", "paged_attention", "write_kv"]

_LOG2_E = 1.4426950408889634

_COLUMNS = 16
"""V is widened to a multiple of this: MKL has kernels for a few left-over columns (seen at 6 and
at 10) that give a row other bits in another place of its tile."""


def write_kv(k_tkd: Tensor, v_tkd: Tensor, cache: tuple[Tensor, Tensor], b: AttentionBatch) -> None:
    """Store the keys and values of the batch's tokens; both pools are ``(N, K, B, D)``.

    What of a block is not written yet is cleared when its first position is: so nobody may begin a
    block anew that another sequence reads.
    """
    kernels = library.active_for(k_tkd.device, k_tkd.dtype, k_tkd.shape[-1])
    if kernels is not None:
        k, v = k_tkd.contiguous(), v_tkd.contiguous()
        kernels.attention(
            int(k.dtype == torch.bfloat16), b.native, LayerData(), 0, k.data_ptr(), v.data_ptr(),
            k[0].numel(), 0, 0, *(pool.data_ptr() for pool in cache), 0, torch.get_num_threads(),
        )  # fmt: skip
        return
    index = b.index
    for new, pool in zip((k_tkd, v_tkd), cache, strict=True):
        if index.fresh_blocks is not None:
            # Masked positions are multiplied by zero, which only finite values survive: what an
            # earlier owner of the block left there must not reach this sequence.
            pool.index_fill_(0, index.fresh_blocks, 0.0)
        head_dim = new.shape[-1]
        pool.view(-1, head_dim).index_copy_(0, index.slots, new.reshape(-1, head_dim))


def paged_attention(
    q_thd: Tensor, cache: tuple[Tensor, Tensor], batch: AttentionBatch, window: int | None = None
) -> Tensor:
    """Causal attention of the batch's tokens over their sequences' caches; ``(T, H, D)``.

    ``write_kv`` has stored the batch's own keys and values. ``window`` is how many positions back
    a token sees, itself included. The result has the dtype of
    ``q_thd``; sums are fp32.
    """
    tokens, heads, dim = q_thd.shape
    kernels = library.active_for(q_thd.device, q_thd.dtype, dim)
    if kernels is not None:
        q, mixed = (
            q_thd.contiguous(),
            torch.empty_like(q_thd, memory_format=torch.contiguous_format),
        )
        kernels.attention(
            int(q.dtype == torch.bfloat16), batch.native, LayerData(window=window or 0),
            q.data_ptr(), 0, 0, heads * dim, 0, 0, *(pool.data_ptr() for pool in cache),
            mixed.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return mixed
    if gpu.usable(q_thd.device):
        from ppinfer.kernels.gpu.attention import paged_attention as on_gpu

        return on_gpu(q_thd.contiguous(), cache, batch.gpu, window)
    index = batch.index
    plan = index.tiles(window)
    scale = dim**-0.5 * _LOG2_E  # powers of two instead of e: see elementwise.exp2_
    rows = q_thd.reshape(tokens * heads, dim).index_select(0, plan.query_rows).float().mul_(scale)
    q = rows.view(-1, index.num_kv_heads, ROWS, dim)
    if len(plan.groups) == 1:
        out = _attend(q, cache, plan.groups[0])
    else:
        out = torch.empty_like(q)
        for group in plan.groups:
            part = slice(group.first_tile, group.first_tile + group.num_tiles)
            out[part] = _attend(q[part], cache, group)
    flat = out.reshape(-1, dim).index_select(0, plan.result_rows)
    return flat.to(q_thd.dtype).view(tokens, heads, dim)


def _attend(q_tkrd: Tensor, cache: tuple[Tensor, Tensor], group: TileGroup) -> Tensor:
    """``(t, K, R, D)`` of scaled queries to the same shape of results."""
    _, heads, _, dim = q_tkrd.shape
    num_pairs = group.rounds[-1][1]
    scores = q_tkrd.new_empty((num_pairs * heads, ROWS, SPLIT))
    q_pairs = q_tkrd if group.tile_of_pair is None else q_tkrd.index_select(0, group.tile_of_pair)
    q_pairs = q_pairs.view(-1, ROWS, dim)
    for piece in group.pieces:
        keys = _gather(cache[0], piece.block_rows, piece.split_of_matrix, dim)
        part = slice(piece.first_pair * heads, piece.last_pair * heads)
        torch.bmm(q_pairs[part], keys.transpose(1, 2), out=scores[part])
    s = scores.view(num_pairs, heads, ROWS, SPLIT)
    for first, last, mask in group.masks:
        s[first:last].add_(mask)
    peaks = s.amax(-1, keepdim=True)
    # rounds[j] holds the j-th split of every tile that has one: a prefix of the tiles.
    peak = peaks[: group.num_tiles]
    for first, last in group.rounds[1:]:
        torch.maximum(peak[: last - first], peaks[first:last], out=peak[: last - first])
    for first, last in group.rounds:
        s[first:last].sub_(peak[: last - first])
    exp2_(scores)
    sums = s.sum(-1, keepdim=True)
    width = -(-dim // _COLUMNS) * _COLUMNS
    products = q_tkrd.new_empty((num_pairs * heads, ROWS, width))
    for piece in group.pieces:
        values = _gather(cache[1], piece.block_rows, piece.split_of_matrix, dim)
        if width > dim:
            values = functional.pad(values, (0, width - dim))
        part = slice(piece.first_pair * heads, piece.last_pair * heads)
        torch.bmm(scores[part], values, out=products[part])
    products = products.view(num_pairs, heads, ROWS, width)
    total, out = sums[: group.num_tiles], products[: group.num_tiles]
    for first, last in group.rounds[1:]:
        total[: last - first].add_(sums[first:last])
        out[: last - first].add_(products[first:last])
    return out.div_(total)[..., :dim]


def _gather(pool: Tensor, block_rows: Tensor, split_of_matrix: Tensor | None, dim: int) -> Tensor:
    """Splits of keys or values as fp32 ``(pairs * K, S, D)``, out of blocks ``(N, K, B, D)``."""
    blocks = pool.view(-1, pool.shape[2] * dim).index_select(0, block_rows)
    splits = blocks.view(-1, SPLIT * dim).float()
    if split_of_matrix is not None:
        splits = splits.index_select(0, split_of_matrix)
    return splits.view(-1, SPLIT, dim)
