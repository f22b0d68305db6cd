"""A linear layer whose output rows depend on their own input row alone, bit for bit.

``Linear`` owns its storage behind one seam. On a CPU the native kernels' own product is used where
they have one for the dtype. Otherwise the weight is reordered once for oneDNN, whose result for a
row does not change with the number of rows as long as there are at least two: a single row takes
another code path inside oneDNN, so it is padded to two. That would not hold for bf16 in matrix
registers (AMX), which oneDNN uses for some numbers of rows and not for others: it is told to leave
them alone. Where the native kernels are there, oneDNN is left with bf16 on processors that have no
instructions for it. On a GPU it is the product of ``gpu/product.py``. Elsewhere, and on a GPU where
``keep_rows_invariant`` was told not to, it is ``F.linear``, which promises nothing of the kind (MKL
and cuBLAS pick kernels by shape).

Shapes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.kernels.gpu import device as gpu
from ppinfer.kernels.heap import lasting
from ppinfer.kernels.native import library

Product = Callable[..., None]
"""``linear`` of ``native/library.py``."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Of which numbers outputs and inputs are multiples; inputs that are multiplied together."""

    outputs: int
    inputs: int
    beside: int


_LAYOUTS = {
    torch.float32: _Layout(outputs=48, inputs=1, beside=1),  # native/src/product.h
    torch.bfloat16: _Layout(outputs=32, inputs=32, beside=2),  # native/src/linear.h
}

# Read by oneDNN when it is first used.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


_invariant = True


def keep_rows_invariant(yes: bool) -> None:
    """Whether this process keeps the bits of a row those it has alone, at any price.

    Where oneDNN multiplies, a single row is padded to two, which takes about a tenth of a product
    of bf16 that is one row high. On a GPU, libraries' products are left alone. The native products
    cost nothing.
    """
    global _invariant
    _invariant = yes


class Linear:
    """``x_ti @ weight_oi.T + bias_o``, stored as suits the device.

    Takes the weight over: while it is being reordered both copies exist, so a caller that wants
    memory to stay low drops its own reference and loads its largest weights first.

    Attributes:
        nbytes: bytes resident for weight and bias, with the padding that reordering adds.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._product = _own_product(weight.dtype, weight.device)
        self._packed = can_pack(weight.dtype, weight.device)
        self._is_gpu = gpu.usable(weight.device)
        self._bias = bias
        if self._product is not None:
            self._weight, self._inputs = _panels(weight)
            self._addresses = self._weight.data_ptr(), 0 if bias is None else bias.data_ptr()
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
        if self._product is not None:
            return self._multiply(self._product, x_ti)
        if self._is_gpu and _invariant:
            from ppinfer.kernels.gpu.product import product

            return product(x_ti, self._weight, self._bias)
        if not self._packed:
            return functional.linear(x_ti, self._weight, self._bias)
        if x_ti.shape[0] == 1 and _invariant:
            return self._pointwise(torch.cat((x_ti, x_ti)))[:1]
        return self._pointwise(x_ti)

    @property
    def is_native(self) -> bool:
        """Whether a native kernel may compute with it, without padding its input."""
        return self._product is not None and self._inputs == self.in_features

    @property
    def addresses(self) -> tuple[int, int]:
        """Of a native product's weight and bias, 0 without one; as long as this layer lives."""
        return self._addresses

    def shares(self, weight: Tensor | None) -> bool:
        """Whether this layer computes with the very memory of ``weight``."""
        return weight is not None and self._weight is weight

    def _multiply(self, product: Product, x_ti: Tensor) -> Tensor:
        if self._inputs > self.in_features:
            x_ti = functional.pad(x_ti, (0, self._inputs - self.in_features))
        x_ti = x_ti.contiguous()
        rows = x_ti.shape[0]
        out = x_ti.new_empty((rows, self.out_features))
        weight, bias = self._addresses
        product(
            x_ti.data_ptr(), weight, bias, out.data_ptr(), rows, self._inputs, self.out_features,
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def _pointwise(self, x_ti: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_ti, self._weight, self._bias, "none", [], ""
        )
        return out


def _own_product(dtype: torch.dtype, device: torch.device) -> Product | None:
    """The native matrix product for this dtype, where there is one."""
    kernels = library.active() if device.type == "cpu" and dtype in _LAYOUTS else None
    return None if kernels is None else kernels.linear.get(dtype)


def _panels(weight_oi: Tensor) -> tuple[Tensor, int]:
    """The layout of the native product, and how many inputs it has with their padding.

    Panels of 16 outputs: (inputs / beside, 16 outputs, ``beside`` inputs).
    """
    outputs, inputs = weight_oi.shape
    layout = _LAYOUTS[weight_oi.dtype]
    missing = -inputs % layout.inputs
    if missing:  # a pad of nothing would copy too
        weight_oi = functional.pad(weight_oi, (0, missing))
        inputs += missing
    count = -(-outputs // layout.outputs) * layout.outputs // 16
    panels = lasting((count, inputs // layout.beside, 16, layout.beside), weight_oi.dtype)
    by_output = panels.transpose(1, 2)
    full = outputs // 16
    parts = weight_oi.view(outputs, -1, layout.beside)
    by_output[:full].copy_(parts[: full * 16].view(full, 16, *parts.shape[1:]))
    if outputs % 16:
        by_output[full, : outputs % 16].copy_(parts[full * 16 :])
    return panels, inputs


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has reordered linears for this dtype on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
