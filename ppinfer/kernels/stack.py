"""All decoder layers of a stage in one native call, where every part of them has a native kernel.

The same arithmetic as layer by layer (``ops.py``), without a return to Python between operations:
a decode step has nine of them a layer, each a few microseconds of overhead, and threads that would
fall asleep or spin in the way of another stage.

Legend: T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.linear import Linear
from ppinfer.kernels.native.library import (
    DecoderLayerData,
    Kernels,
    ProductData,
    ScratchpadData,
    SizesData,
)
from ppinfer.kernels.ops import AttentionLayer, Buffers, Rotary

if TYPE_CHECKING:
    from ctypes import Array


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a decoder layer is made of. All norms have the same ``eps``."""

    attn_norm: Tensor
    qkv: Linear
    attention: AttentionLayer
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    eps: float

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class LayerStack:
    """The layers of one stage on one KV cache; both stay where they are in memory."""

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerParts],
        cache: Sequence[tuple[Tensor, Tensor]],
        buffers: Buffers,
    ) -> None:
        assert fits(layers)
        self._kernels = kernels
        self._held = (tuple(layers), tuple(cache))  # what the pointers below point to
        self._buffers = buffers
        first = layers[0]
        self._is_bf16 = int(first.attn_norm.dtype == torch.bfloat16)
        self._widths = {
            "norm": first.qkv.in_features,
            "qkv": first.qkv.out_features,
            "attention": first.out.in_features,
            "added": first.out.out_features,
            "gate_up": first.gate_up.out_features,
            "gate": first.down.in_features,
        }
        self._sizes = SizesData(hidden=first.qkv.in_features, inner=first.down.in_features)
        data = [_data(parts, pools) for parts, pools in zip(layers, cache, strict=True)]
        self._layers: Array[DecoderLayerData] = (DecoderLayerData * len(data))(*data)

    def __call__(self, x_te: Tensor, batch: AttentionBatch, rotary: Rotary) -> Tensor:
        """Take the residual stream ``(T, E)``, contiguous, through all layers, in place."""
        rows = x_te.shape[0]
        pad = ScratchpadData(
            *(self._buffers.get(kind, rows, size)[1] for kind, size in self._widths.items())
        )
        cos, sin = rotary.tables(batch.num_positions)
        self._kernels.layers(
            self._is_bf16, batch.native, self._layers, len(self._layers), self._sizes, pad,
            x_te.data_ptr(), cos.data_ptr(), sin.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return x_te


def fits(layers: Sequence[LayerParts]) -> bool:
    """Whether all linear layers are ones that the native kernels multiply with themselves."""
    return all(linear.is_native for parts in layers for linear in parts.linears)


def _data(parts: LayerParts, pools: tuple[Tensor, Tensor]) -> DecoderLayerData:
    return DecoderLayerData(
        attn_norm=parts.attn_norm.data_ptr(),
        mlp_norm=parts.mlp_norm.data_ptr(),
        qkv=_product(parts.qkv),
        out=_product(parts.out),
        gate_up=_product(parts.gate_up),
        down=_product(parts.down),
        k_pool=pools[0].data_ptr(),
        v_pool=pools[1].data_ptr(),
        attention=parts.attention.native,
        eps=parts.eps,
    )


def _product(linear: Linear) -> ProductData:
    return ProductData(*linear.addresses)
