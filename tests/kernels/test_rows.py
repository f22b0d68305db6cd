"""Linear layers and elementwise functions give a row the same bits wherever it stands."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ppinfer.kernels.elementwise import LANES, exp2_, gated_silu
from ppinfer.kernels.linear import Linear, can_pack, keep_rows_invariant
from ppinfer.kernels.native import library

DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [1, 2, 3, 7, 8, 16, 31, 64, 200]
SIZES = [(64, 64), (40, 97), (33, 50), (576, 200), (7, 3), (1537, 49)]
"""Inputs and outputs; 200 rows of the last do not fit a cache, so they are multiplied in blocks."""


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_linear(
    inputs: int, outputs: int, bias: bool, dtype: torch.dtype, kernel_path: str
) -> None:
    if not can_pack(dtype, torch.device("cpu")):
        pytest.skip("no reordered linears for this type on this processor")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    offset = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    x = torch.randn(200, inputs, generator=generator).to(dtype)
    linear = Linear(weight, offset)
    whole = linear(x)
    expected = functional.linear(x.float(), weight.float(), offset.float() if bias else None)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        whole.float(), expected, atol=tolerance * inputs**0.5, rtol=tolerance
    )
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in COUNTS:
            for start in {0, (200 - count) // 3, 200 - count}:
                rows = linear(x[start : start + count])
                assert torch.equal(rows, whole[start : start + count]), (threads, start, count)


@pytest.mark.parametrize("padded", [True, False])
def test_a_single_row_of_onednn_is_padded_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    monkeypatch.setattr(library, "active", lambda: None)
    heights = []
    linear = Linear(torch.randn(32, 16))
    multiply = linear._pointwise
    monkeypatch.setattr(linear, "_pointwise", lambda x: heights.append(len(x)) or multiply(x))
    x = torch.randn(1, 16)
    keep_rows_invariant(padded)
    try:
        assert linear(x).shape == (1, 32)
    finally:
        keep_rows_invariant(True)
    assert heights == [2 if padded else 1]


def test_linear_counts_its_bytes() -> None:
    weight, bias = torch.randn(128, 64), torch.randn(128)
    assert Linear(weight, bias).nbytes >= weight.nbytes + bias.nbytes
    assert not Linear(weight).shares(weight)
    half = torch.randn(8, 8).half()
    plain = Linear(half)
    assert plain.nbytes == 128
    assert plain.shares(half)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 97, 128, 161, 300])
def test_exp2_is_the_same_everywhere(rows: int, threads: int) -> None:
    x = torch.randn(rows * LANES, generator=torch.Generator().manual_seed(rows)) * 30
    x[::7] = -torch.inf
    expected = torch.cat([part.clone().exp2_() for part in x.split(LANES)])
    torch.testing.assert_close(expected, torch.exp2(x.double()).float(), rtol=1e-6, atol=0)
    torch.set_num_threads(threads)
    assert torch.equal(exp2_(x.clone()), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("inner", [1, 5, 92, 1536, 1537])
def test_gated_silu(inner: int, dtype: torch.dtype) -> None:
    x = (torch.randn(300, 2 * inner, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
    x[0, 0], x[1, 0] = 300.0, -300.0  # where the exponential underflows and overflows
    whole = gated_silu(x)
    expected = functional.silu(x[:, :inner]) * x[:, inner:]
    tolerance = 1e-6 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(whole, expected, atol=tolerance, rtol=tolerance)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in COUNTS:
            for start in {0, (300 - count) // 3, 300 - count}:
                rows = gated_silu(x[start : start + count])
                assert torch.equal(rows, whole[start : start + count]), (threads, start, count)
