"""A linear layer whose output rows depend on their own input row alone, bit for bit.

``Linear`` owns its storage behind one seam. On a CPU the weight is reordered once for oneDNN, whose
result for a row does not change with the number of rows as long as there are at least two: a single
row takes another code path inside oneDNN, so it is padded to two. That does not hold for bf16 in
matrix registers (AMX), which oneDNN uses for some numbers of rows and not for others: it is told to
leave them alone, and the native kernels' own product uses them. Elsewhere it is ``F.linear``, which
promises nothing of the kind (MKL and cuBLAS pick kernels by shape).

Shapes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.kernels.heap import lasting
from ppinfer.kernels.native import library
from ppinfer.kernels.native.library import Kernels

# Read by oneDNN when it is first used.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


class Linear:
    """``x_ti @ weight_oi.T + bias_o``, stored as suits the device.

    Takes the weight over: while it is being reordered both copies exist, so a caller that wants
    memory to stay low drops its own reference and loads its largest weights first.

    Attributes:
        nbytes: bytes resident for weight and bias, with the padding that reordering adds.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._kernels = _own_kernels(weight.dtype, weight.device)
        self._packed = can_pack(weight.dtype, weight.device)
        self._bias = bias
        if self._kernels is not None:
            self._weight = _panels(weight)
            size = self._weight.nbytes
        elif self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
            size = int(torch.ops.mkldnn._nbytes(self._weight))
        else:
            self._weight = weight
            size = weight.nbytes
        self.nbytes = size + (0 if bias is None else bias.nbytes)

    def __call__(self, x_ti: Tensor) -> Tensor:
        """``(T, I)`` to ``(T, O)`` in the weight's dtype."""
        if self._kernels is not None:
            return self._own_product(x_ti)
        if not self._packed:
            return functional.linear(x_ti, self._weight, self._bias)
        if x_ti.shape[0] == 1:
            return self._pointwise(torch.cat((x_ti, x_ti)))[:1]
        return self._pointwise(x_ti)

    @property
    def is_native(self) -> bool:
        """Whether a native kernel may compute with it, without padding its input."""
        return self._kernels is not None and self.in_features % 32 == 0

    @property
    def addresses(self) -> tuple[int, int]:
        """Of weight and bias, 0 without one; they stay as long as this layer does."""
        return self._weight.data_ptr(), 0 if self._bias is None else self._bias.data_ptr()

    def shares(self, weight: Tensor | None) -> bool:
        """Whether this layer computes with the very memory of ``weight``."""
        return weight is not None and self._weight is weight

    def _own_product(self, x_ti: Tensor) -> Tensor:
        rows, size = x_ti.shape[0], -(-self.in_features // 32) * 32
        if size > self.in_features:
            x_ti = functional.pad(x_ti, (0, size - self.in_features))
        x_ti = x_ti.contiguous()
        out = x_ti.new_empty((rows, self.out_features))
        assert self._kernels is not None
        self._kernels.linear(
            x_ti.data_ptr(), self._weight.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(), out.data_ptr(), rows, size,
            self.out_features, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def _pointwise(self, x_ti: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_ti, self._weight, self._bias, "none", [], ""
        )
        return out


def _own_kernels(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The native kernels where they have a matrix product for this dtype."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return None
    kernels = library.active()
    return kernels if kernels is not None and kernels.linear is not None else None


def _panels(weight_oi: Tensor) -> Tensor:
    """The layout of ``native/src/linear.h``."""
    outputs, inputs = weight_oi.shape
    if outputs % 32 or inputs % 32:  # a pad of nothing would copy too
        weight_oi = functional.pad(weight_oi, (0, -inputs % 32, 0, -outputs % 32))
    parts = weight_oi.view(weight_oi.shape[0] // 16, 16, -1, 2).transpose(1, 2)
    return lasting(tuple(parts.shape), weight_oi.dtype).copy_(parts)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has reordered linears for this dtype on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
