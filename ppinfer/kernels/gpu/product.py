"""A matrix product whose rows do not depend on how many there are: ``(T, I) @ (O, I).T``.

Libraries choose a kernel, and with it an order of summing, by the number of rows. Here the inputs
are cut into segments that only the weight's shape decides. A segment is one chain of matrix
instructions in ascending order, and the segments are added up in ascending order: by one program
where there are many rows, by one program a segment and a second kernel where there are few, since
those need more programs than there are tiles to read the weight at full speed.

Legend: T rows, I inputs, O outputs, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppinfer.kernels.gpu.device import stages_of

_PROGRAMS = 264
"""Programs that a product of few rows is cut into, about: two for each processor of a large GPU."""

_LEAST_SEGMENT, _MOST_SEGMENTS = 512, 16


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


_TILES = {
    2: (_Tile(16, 64, 128, 4, 4), _Tile(64, 64, 64, 4, 6), _Tile(128, 128, 64, 8, 4)),
    4: (_Tile(16, 64, 32, 4, 3), _Tile(64, 64, 32, 8, 3)),
}
"""By the bytes of an element, the lowest first: which one makes no difference to the result."""


def segments_of(outputs: int, inputs: int) -> tuple[int, int]:
    """How many segments a weight of this shape has, and how many inputs each but the last."""
    wanted = min(_PROGRAMS * 64 // outputs, inputs // _LEAST_SEGMENT, _MOST_SEGMENTS)
    length = -(-inputs // max(1, wanted))
    length = -(-length // 128) * 128  # a multiple of every tile's inputs
    return -(-inputs // length), length


def product(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """``(T, I)`` to ``(T, O)``, all of one dtype; rows must be contiguous."""
    (rows, inputs), outputs = x_ti.shape, weight_oi.shape[0]
    out = x_ti.new_empty((rows, outputs))
    bias = out if bias_o is None else bias_o
    count, length = segments_of(outputs, inputs)
    size, device = x_ti.element_size(), x_ti.device
    tile = next((tile for tile in _TILES[size] if rows <= tile.rows), _TILES[size][-1])
    stage_bytes = (tile.rows + tile.outputs) * tile.inputs * size
    tiles = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)
    split = count if 4 * tiles[0] * tiles[1] <= _PROGRAMS else 1
    sums = out if split == 1 else x_ti.new_empty((split, rows, outputs), dtype=torch.float32)
    _product[(*tiles, split)](
        x_ti, weight_oi, bias, sums,
        rows, outputs, inputs, x_ti.stride(0), length, count // split,
        HAS_BIAS=bias_o is not None and split == 1, IS_WHOLE=count == 1,
        ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs,
        num_warps=tile.warps, num_stages=stages_of(stage_bytes, tile.stages, device),
    )  # fmt: skip
    if split > 1:
        elements = rows * outputs
        _add_segments[(triton.cdiv(elements, 1024),)](
            sums, bias, out, elements, outputs, split, HAS_BIAS=bias_o is not None, SIZE=1024
        )
    return out


@triton.jit(do_not_specialize=["rows", "segments"])
def _product(
    x, weight, bias, out,
    rows, outputs, inputs, x_stride, segment_length, segments,
    HAS_BIAS: tl.constexpr, IS_WHOLE: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """One tile of the product, of as many segments as the program has; ``out`` is (S, T, O).

    ``IS_WHOLE`` says that the weight has one segment, which needs no sum of segments.
    """
    split = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    step = tl.arange(0, INPUTS)
    is_row, is_output = row < rows, output < outputs
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    w_rows = weight + output.to(tl.int64)[None, :] * inputs
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for segment in range(split * segments, (split + 1) * segments):
        first = segment * segment_length
        last = tl.minimum(first + segment_length, inputs)
        part = total if IS_WHOLE else tl.zeros((ROWS, OUTPUTS), tl.float32)
        for at in range(first, last, INPUTS):
            i = at + step
            a = tl.load(x_rows + i[None, :], mask=is_row[:, None] & (i < last)[None, :], other=0.0)
            b = tl.load(
                w_rows + i[:, None], mask=is_output[None, :] & (i < last)[:, None], other=0.0
            )
            part = tl.dot(a, b, part, input_precision="ieee")
        total = part if IS_WHOLE else total + part
    if HAS_BIAS:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    at_out = (split.to(tl.int64) * rows + row)[:, None] * outputs + output[None, :]
    tl.store(
        out + at_out, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :]
    )


@triton.jit(do_not_specialize=["size"])
def _add_segments(
    sums, bias, out, size, outputs, segments, HAS_BIAS: tl.constexpr, SIZE: tl.constexpr
):
    """``(S, T * O)`` to ``(T * O,)``."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < size
    total = tl.zeros((SIZE,), tl.float32)
    source = sums + at
    for _ in range(segments):
        total += tl.load(source, mask=inside, other=0.0)
        source += size
    if HAS_BIAS:
        total += tl.load(bias + at % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
