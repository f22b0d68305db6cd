"""The greatest element of a row, as torch finds it, on the kernels and without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ppinfer.kernels.argmax import argmax_rows
from ppinfer.kernels.native import library, paths


@pytest.fixture(params=[*(path.name for path in paths.available()), "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(library.VARIABLE, request.param)
    library.choice.cache_clear()
    yield request.param
    library.choice.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, 5000])
def test_argmax(path: str, size: int, dtype: torch.dtype) -> None:
    x = torch.randn(33, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    x[0] = -torch.inf
    x[1] = 1.0
    x[2] = -x[2].abs() - 1
    x[3] = 0.0
    x[3, : size // 2] = -0.0
    expected = [row.tolist().index(max(row.tolist())) for row in x]
    assert argmax_rows(x) == expected
    assert argmax_rows(x[5:6]) == expected[5:6]
    assert argmax_rows(x[:, : size // 2 + 1]) == [
        row.tolist().index(max(row.tolist())) for row in x[:, : size // 2 + 1]
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
def test_a_row_with_a_nan_has_none(path: str, dtype: torch.dtype, bad: float) -> None:
    x = torch.randn(4, 3000).to(dtype)
    x[1, 2999] = bad
    x[2, 5] = torch.inf
    found = argmax_rows(x)
    assert found[1] == -1
    assert found[2] == 5
    assert -1 not in (found[0], found[3])
