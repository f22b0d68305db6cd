"""What a decoder layer asks for besides its linear layers, on whichever kernels are there.

``ops_for_step`` gives one object a step; all layers of the step use it. ``TorchOps`` is the plain
way, ``NativeOps`` the one in C++, ``gpu/ops.py`` has the one in Triton. All keep the rounding of
``transformers``, and in all a row's bits depend on its own sequence alone, but for ``TorchOps`` on
a GPU, where PyTorch promises nothing of the kind.

Legend: T tokens, E hidden size, H query heads, K KV heads, D head size, I inner size of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ppinfer.kernels.attention import paged_attention, write_kv
from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.elementwise import gated_silu, rms_norm, rotate
from ppinfer.kernels.gpu import device as gpu
from ppinfer.kernels.native import library
from ppinfer.kernels.native.library import Kernels, LayerData


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What of a layer attention needs to know beside its queries, keys and values.

    ``q_norm`` and ``k_norm`` (D,) are the weights of norms over each head, ``window`` is how many
    positions back a token sees, itself included.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    native: LayerData = field(init=False)

    def __post_init__(self) -> None:
        q, k = (0 if norm is None else norm.data_ptr() for norm in (self.q_norm, self.k_norm))
        object.__setattr__(self, "native", LayerData(q, k, self.eps, self.window or 0))


class Rotary(Protocol):
    """Cosines and sines of every position up to one: ``models/rope.py``."""

    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]: ...
    def at(self, positions: Tensor, num_positions: int) -> tuple[Tensor, Tensor]: ...


class Ops(Protocol):
    def norm(self, x_te: Tensor, addend_te: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Root mean square norm of ``x + addend``; the sum is left in ``x``."""

    def attention(self, qkv: Tensor, layer: AttentionLayer, cache: tuple[Tensor, Tensor]) -> Tensor:
        """``(T, (H + 2 * K) * D)`` before rotation to ``(T, H * D)``; writes K and V of the tokens.

        ``qkv`` may be overwritten.
        """

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for ``(T, 2 * I)`` with the gate first."""


class Buffers:
    """Results that live until the same is asked for again: one of each kind, for all layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, tuple[int, int, Tensor, int]] = {}

    def get(self, kind: str, rows: int, size: int) -> tuple[Tensor, int]:
        """A tensor ``(rows, size)`` with whatever in it, and its address."""
        held = self._held.get(kind)
        if held is None or held[0] != rows or held[1] != size:
            tensor = torch.empty((rows, size), dtype=self._dtype)
            held = self._held[kind] = (rows, size, tensor, tensor.data_ptr())
        return held[2], held[3]


def native_norm(
    kernels: Kernels,
    buffers: Buffers,
    x_te: Tensor,
    addend_te: Tensor | None,
    weight: Tensor,
    eps: float,
) -> Tensor:
    """``Ops.norm`` of contiguous rows; the result is good until the next one."""
    rows, size = x_te.shape
    out, address = buffers.get("norm", rows, size)
    addend = 0 if addend_te is None else addend_te.data_ptr()
    kernels.norm(
        int(x_te.dtype == torch.bfloat16), x_te.data_ptr(), addend, weight.data_ptr(), address,
        rows, size, eps, torch.get_num_threads(),
    )  # fmt: skip
    return out


class NativeOps:
    """The kernels in C++, on a CPU. A result is good until the next one of its kind."""

    def __init__(
        self,
        kernels: Kernels,
        batch: AttentionBatch,
        rotary: Rotary,
        buffers: Buffers,
        dtype: torch.dtype,
    ) -> None:
        self._kernels, self._batch, self._buffers = kernels, batch, buffers
        self._is_bf16 = int(dtype == torch.bfloat16)
        self._itemsize = dtype.itemsize
        self._threads = torch.get_num_threads()
        self._tables = rotary.tables(batch.num_positions)
        self._cos, self._sin = (table.data_ptr() for table in self._tables)
        self._step = batch.native

    def norm(self, x_te: Tensor, addend_te: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return native_norm(self._kernels, self._buffers, x_te, addend_te, weight, eps)

    def attention(self, qkv: Tensor, layer: AttentionLayer, cache: tuple[Tensor, Tensor]) -> Tensor:
        rows, stride = qkv.shape
        width = layer.num_heads * layer.head_dim
        out, address = self._buffers.get("attention", rows, width)
        q = qkv.data_ptr()
        k = q + width * self._itemsize
        v = k + layer.num_kv_heads * layer.head_dim * self._itemsize
        self._kernels.attention(
            self._is_bf16, self._step, layer.native, q, k, v, stride, self._cos, self._sin,
            cache[0].data_ptr(), cache[1].data_ptr(), address, self._threads,
        )  # fmt: skip
        return out

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape
        out, address = self._buffers.get("gate", rows, width // 2)
        self._kernels.gate(
            self._is_bf16, gate_up.data_ptr(), address, rows, width // 2, self._threads
        )
        return out


class TorchOps:
    """Plain PyTorch, on any device."""

    def __init__(self, batch: AttentionBatch, rotary: Rotary) -> None:
        self._batch = batch
        self._rotary = rotary.at(batch.index.positions, batch.num_positions)

    def norm(self, x_te: Tensor, addend_te: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if addend_te is not None:
            x_te.add_(addend_te)
        return rms_norm(x_te, weight, eps)

    def attention(self, qkv: Tensor, layer: AttentionLayer, cache: tuple[Tensor, Tensor]) -> Tensor:
        heads = [layer.num_heads, layer.num_kv_heads]
        heads_thd = qkv.view(qkv.shape[0], sum(heads) + heads[1], layer.head_dim)
        qk, v_tkd = heads_thd[:, : sum(heads)], heads_thd[:, sum(heads) :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = torch.split(qk, heads, dim=1)
            q, k = rms_norm(q, layer.q_norm, layer.eps), rms_norm(k, layer.k_norm, layer.eps)
            qk = torch.cat((q, k), dim=1)
        q_thd, k_tkd = torch.split(rotate(qk, *self._rotary), heads, dim=1)
        write_kv(k_tkd, v_tkd, cache, self._batch)
        mixed = paged_attention(q_thd, cache, self._batch, layer.window)
        return mixed.view(qkv.shape[0], -1)

    def gated_silu(self, gate_up: Tensor) -> Tensor:
        return gated_silu(gate_up)


def ops_for_step(
    batch: AttentionBatch, rotary: Rotary, buffers: Buffers | None, dtype: torch.dtype
) -> Ops:
    """Those in Triton on a GPU, the native ones where there are buffers for their results, else
    plain PyTorch."""
    if gpu.usable(batch.device):
        from ppinfer.kernels.gpu.ops import GpuOps

        return GpuOps(batch.gpu, rotary.tables(batch.num_positions))
    kernels = library.active()
    if buffers is None or kernels is None:
        return TorchOps(batch, rotary)
    return NativeOps(kernels, batch, rotary, buffers, dtype)
