"""The parts of a decoder layer, for inference only: plain objects that own their weights.

Legend: T tokens, E hidden size, H query heads, K KV heads, D head size, I inner size of the MLP.
"""

from __future__ import annotations

from torch import Tensor

from ppinfer.kernels.elementwise import rms_norm
from ppinfer.kernels.linear import Linear
from ppinfer.kernels.ops import AttentionLayer, Ops
from ppinfer.kernels.stack import LayerParts


class RMSNorm:
    """Root mean square norm over the last dimension: in fp32, rounded, then times the weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


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
        self.qkv, self.out = qkv, out
        self.layer = AttentionLayer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            window=window,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            eps=0.0 if q_norm is None else q_norm.eps,
        )
        norms = [norm.nbytes for norm in (q_norm, k_norm) if norm is not None]
        self.nbytes = qkv.nbytes + out.nbytes + sum(norms)

    def __call__(self, x_te: Tensor, ops: Ops, cache: tuple[Tensor, Tensor]) -> Tensor:
        return self.out(ops.attention(self.qkv(x_te), self.layer, cache))


class GatedMLP:
    """``down(silu(gate(x)) * up(x))``; gate and up come from one matrix."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up, self.down = gate_up, down
        self.nbytes = gate_up.nbytes + down.nbytes

    def __call__(self, x_te: Tensor, ops: Ops) -> Tensor:
        return self.down(ops.gated_silu(self.gate_up(x_te)))


class DecoderLayer:
    """Attention and MLP, each on the normed stream and added to it."""

    def __init__(
        self, attn_norm: RMSNorm, attention: Attention, mlp_norm: RMSNorm, mlp: GatedMLP
    ) -> None:
        self._attn_norm, self._attention = attn_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp
        self.nbytes = attn_norm.nbytes + attention.nbytes + mlp_norm.nbytes + mlp.nbytes

    @property
    def parts(self) -> LayerParts:
        assert self._attn_norm.eps == self._mlp_norm.eps
        return LayerParts(
            attn_norm=self._attn_norm.weight,
            qkv=self._attention.qkv,
            attention=self._attention.layer,
            out=self._attention.out,
            mlp_norm=self._mlp_norm.weight,
            gate_up=self._mlp.gate_up,
            down=self._mlp.down,
            eps=self._attn_norm.eps,
        )

    def __call__(
        self, x_te: Tensor, pending_te: Tensor | None, ops: Ops, cache: tuple[Tensor, Tensor]
    ) -> Tensor:
        """What is still to be added to the stream, which the next norm does in passing.

        ``x_te`` is changed: it takes up ``pending_te``, left by the layer before, and attention.
        """
        normed = ops.norm(x_te, pending_te, self._attn_norm.weight, self._attn_norm.eps)
        mixed = self._attention(normed, ops, cache)
        normed = ops.norm(x_te, mixed, self._mlp_norm.weight, self._mlp_norm.eps)
        return self._mlp(normed, ops)
