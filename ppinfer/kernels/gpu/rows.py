"""What is done row by row and head by head: norms, gates, rotation, writing to the KV cache.

One program works on one row or head, always in the same way, so its bits are its own. Roundings are
those of ``transformers``.

Legend: T tokens, E hidden size, H query heads, K KV heads, D head size, I inner size of the MLP.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def _warps(size: int) -> int:
    return max(1, min(16, int(triton.next_power_of_2(size)) // 512))


def norm(x_te: Tensor, addend_te: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """``Ops.norm``."""
    rows, size = x_te.shape
    out = torch.empty_like(x_te)
    _norm[(rows,)](
        x_te, x_te if addend_te is None else addend_te, weight, out, size, eps,
        HAS_ADDEND=addend_te is not None, SIZE=triton.next_power_of_2(size),
        num_warps=_warps(size),
    )  # fmt: skip
    return out


def gated_silu(gate_up: Tensor) -> Tensor:
    """``Ops.gated_silu``."""
    rows, width = gate_up.shape
    out = gate_up.new_empty((rows, width // 2))
    _gate[(rows, triton.cdiv(width // 2, 1024))](gate_up, out, width // 2, SIZE=1024, num_warps=4)
    return out


@triton.jit
def _norm(x, addend, weight, out, size, eps, HAS_ADDEND: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, SIZE)
    inside = at < size
    kind = x.dtype.element_ty
    wide = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADDEND:
        wide += tl.load(addend + row + at, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(kind)
        tl.store(x + row + at, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / size + eps)
    normed = (wide * scale).to(kind).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + at, (normed * w).to(kind), mask=inside)


@triton.jit
def _gate(gate_up, out, size, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < size
    kind = gate_up.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    silu = tl.div_rn(gate, 1.0 + tl.exp(-gate)).to(kind).to(tl.float32)
    tl.store(out + row * size + at, (silu * up).to(kind), mask=inside)


@triton.jit
def _head_norm(x, scale, weight, d, inside, kind: tl.constexpr):
    """A head's elements ``x`` at ``d`` times the norm's ``scale`` and weight."""
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    return ((x * scale).to(kind).to(tl.float32) * w).to(kind).to(tl.float32)


@triton.jit
def rotate_and_write(
    qkv, q_out, k_pool, v_pool, cos, sin, q_norm, k_norm, positions, slots,
    heads, kv_heads, head_dim, block_size, eps,
    HAS_NORM: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One head of one token: a query goes to ``q_out`` (T, H, D), keys and values to the pools
    ``(N, K, B, D)``, at ``slots`` (block * B + place in it) that are not negative."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = qkv.dtype.element_ty
    d = tl.arange(0, SIZE)
    inside = d < head_dim
    source = qkv + (token * (heads + 2 * kv_heads) + head) * head_dim
    x = tl.load(source + d, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots + token).to(tl.int64)
    is_kept = d < tl.where(slot >= 0, head_dim, 0)
    kv_head = tl.where(head < heads + kv_heads, head - heads, head - heads - kv_heads)
    at_pool = ((slot // block_size) * kv_heads + kv_head) * block_size + slot % block_size
    if head >= heads + kv_heads:
        tl.store(v_pool + at_pool * head_dim + d, x.to(kind), mask=is_kept)
    else:
        half = head_dim // 2
        other = tl.where(d < half, d + half, d - half)
        y = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            weight = k_norm
            if head < heads:
                weight = q_norm
            scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, axis=0) / head_dim + eps)
            x = _head_norm(x, scale, weight, d, inside, kind)
            y = _head_norm(y, scale, weight, other, inside, kind)
        position = tl.load(positions + token).to(tl.int64)
        c = tl.load(cos + position * head_dim + d, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + position * head_dim + d, mask=inside, other=0.0).to(tl.float32)
        turned = ((x * c).to(kind).to(tl.float32) + (y * s).to(kind).to(tl.float32)).to(kind)
        if head < heads:
            tl.store(q_out + (token * heads + head) * head_dim + d, turned, mask=inside)
        else:
            tl.store(k_pool + at_pool * head_dim + d, turned, mask=is_kept)
