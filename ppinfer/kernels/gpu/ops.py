"""``Ops`` of a step on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
from torch import Tensor

from ppinfer.kernels.gpu import rows
from ppinfer.kernels.gpu.attention import paged_attention
from ppinfer.kernels.gpu.step import StepArrays

if TYPE_CHECKING:
    from ppinfer.kernels.ops import AttentionLayer


class GpuOps:
    """``rotary`` are cosines and sines of all positions up to the step's last."""

    def __init__(self, step: StepArrays, rotary: tuple[Tensor, Tensor]) -> None:
        self._step = step
        self._cos, self._sin = rotary

    def norm(self, x_te: Tensor, addend_te: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return rows.norm(x_te, addend_te, weight, eps)

    def attention(self, qkv: Tensor, layer: AttentionLayer, cache: tuple[Tensor, Tensor]) -> Tensor:
        tokens = qkv.shape[0]
        heads, kv_heads, dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        q_thd = qkv.new_empty((tokens, heads, dim))
        has_norm = layer.q_norm is not None and layer.k_norm is not None
        rows.rotate_and_write[(tokens, heads + 2 * kv_heads)](
            qkv, q_thd, *cache, self._cos, self._sin,
            layer.q_norm if has_norm else qkv, layer.k_norm if has_norm else qkv,
            self._step.positions, self._step.slots, heads, kv_heads, dim, cache[0].shape[2],
            layer.eps, HAS_NORM=has_norm, SIZE=triton.next_power_of_2(dim), num_warps=1,
        )  # fmt: skip
        return paged_attention(q_thd, cache, self._step, layer.window).view(tokens, heads * dim)

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        return rows.gated_silu(gate_up)
