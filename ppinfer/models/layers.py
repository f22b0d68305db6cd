"""The parts of a decoder layer, for inference only: plain objects that own their weights.

Legend: T tokens, E hidden size, H query heads, K KV heads, D head size, I inner size of the MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppinfer.kernels.attention import AttentionBatch, paged_attention, write_kv
from ppinfer.kernels.elementwise import gated_silu
from ppinfer.kernels.linear import Linear
from ppinfer.models.rope import rotate


class RMSNorm:
    """Root mean square norm over the last dimension: in fp32, rounded, then times the weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = wide.pow(2).mean(-1, keepdim=True).add_(self._eps).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(self._weight)


class Attention:
    """Grouped-query attention with rotary positions; q, k and v come from one matrix."""

    def __init__(
        self,
        qkv: Linear,
        out: Linear,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        self._qkv, self._out = qkv, out
        self._num_heads, self._num_kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._window = window
        self._q_norm, self._k_norm = q_norm, k_norm
        norms = [norm.nbytes for norm in (q_norm, k_norm) if norm is not None]
        self.nbytes = qkv.nbytes + out.nbytes + sum(norms)

    def __call__(
        self,
        x_te: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: AttentionBatch,
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        heads = [self._num_heads, self._num_kv_heads]
        qkv = self._qkv(x_te).view(x_te.shape[0], sum(heads) + heads[1], self._head_dim)
        qk, v_tkd = qkv[:, : sum(heads)], qkv[:, sum(heads) :]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = torch.split(qk, heads, dim=1)
            qk = torch.cat((self._q_norm(q), self._k_norm(k)), dim=1)
        q_thd, k_tkd = torch.split(rotate(qk, *rotary), heads, dim=1)
        write_kv(k_tkd, v_tkd, cache, batch)
        mixed = paged_attention(q_thd, cache, batch, self._window)
        return self._out(mixed.view(x_te.shape[0], -1))


class GatedMLP:
    """``down(silu(gate(x)) * up(x))``; gate and up come from one matrix."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self._gate_up, self._down = gate_up, down
        self.nbytes = gate_up.nbytes + down.nbytes

    def __call__(self, x_te: Tensor) -> Tensor:
        return self._down(gated_silu(self._gate_up(x_te)))


class DecoderLayer:
    """Attention and MLP, each on the normed stream and added to it."""

    def __init__(
        self, attn_norm: RMSNorm, attention: Attention, mlp_norm: RMSNorm, mlp: GatedMLP
    ) -> None:
        self._attn_norm, self._attention = attn_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp
        self.nbytes = attn_norm.nbytes + attention.nbytes + mlp_norm.nbytes + mlp.nbytes

    def __call__(
        self,
        x_te: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: AttentionBatch,
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        x_te = x_te + self._attention(self._attn_norm(x_te), rotary, batch, cache)
        return x_te.add_(self._mlp(self._mlp_norm(x_te)))
