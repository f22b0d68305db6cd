"""What a layer asks for besides its linear layers: every path against plain PyTorch, and bits."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.native import library
from ppinfer.kernels.ops import AttentionLayer, Buffers, Ops, TorchOps, ops_for_step

pytestmark = pytest.mark.usefixtures("kernel_path")
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [1, 2, 3, 7, 16, 31, 64]


class Table:
    """Rotary tables of random numbers: the arithmetic is what is compared."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        cos, sin = torch.randn(2, 256, dim, generator=generator)
        self._tables = cos.to(dtype), sin.to(dtype)

    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        return self._tables

    def at(self, positions: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
        cos, sin = (table[positions].unsqueeze(1) for table in self._tables)
        return cos, sin


class Shape:
    num_kv_heads, group_size = 2, 3

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim


def ops(dtype: torch.dtype, dim: int = 64, start: int = 0, length: int = 1) -> tuple[Ops, TorchOps]:
    """The path's own and the plain ones, for one sequence's tokens."""
    tables = [list(range(8, -1, -1))]
    batch = AttentionBatch.build([start], [length], tables, 16, config=Shape(dim), device=CPU)
    table = Table(dim, dtype)
    return ops_for_step(batch, table, Buffers(dtype), dtype), TorchOps(batch, table)


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def assert_close(got: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if got.dtype == torch.float32 else 0.02
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [6, 40, 576, 1000])
@pytest.mark.parametrize("adds", [False, True], ids=["norm", "add and norm"])
def test_norm(size: int, adds: bool, dtype: torch.dtype) -> None:
    x, y, weight = (random(n, size, dtype=dtype) for n in (200, 201, 1))
    own, plain = ops(dtype)
    sum_, same = x.clone(), x.clone()
    whole = own.norm(sum_, y[:200] if adds else None, weight[0], 1e-5).clone()
    assert_close(whole, plain.norm(same, y[:200] if adds else None, weight[0], 1e-5))
    assert torch.equal(sum_, same)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in COUNTS:
            for start in (0, (200 - count) // 3, 200 - count):
                part = slice(start, start + count)
                own, _ = ops(dtype)
                rows = own.norm(x[part].clone(), y[part] if adds else None, weight[0], 1e-5)
                assert torch.equal(rows, whole[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("inner", [1, 5, 92, 1536])
def test_gated_silu(inner: int, dtype: torch.dtype) -> None:
    x = random(200, 2 * inner, dtype=dtype, scale=8)
    x[0, 0], x[1, 0] = 300.0, -300.0
    own, plain = ops(dtype)
    whole = own.gated_silu(x).clone()
    assert_close(whole, plain.gated_silu(x))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in COUNTS:
            for start in (0, (200 - count) // 3, 200 - count):
                own, _ = ops(dtype)
                assert torch.equal(
                    own.gated_silu(x[start : start + count]), whole[start : start + count]
                )


def test_no_numbers_stay_none() -> None:
    x = random(2, 40, dtype=torch.float32)
    x[0, 3] = torch.nan
    own, _ = ops(torch.float32)
    assert own.norm(x.clone(), None, x[1], 1e-5)[0].isnan().all()
    assert own.gated_silu(x)[0, 3].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("norms", [False, True], ids=["plain", "q and k norms"])
@pytest.mark.parametrize("dim", [6, 20, 64, 80])
def test_attention(
    dim: int, norms: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated, stored and attended at once; and the same bits token by token."""
    weight = random(2, dim, dtype=dtype)
    layer = AttentionLayer(
        num_heads=6,
        num_kv_heads=2,
        head_dim=dim,
        window=None,
        q_norm=weight[0] if norms else None,
        k_norm=weight[1] if norms else None,
        eps=1e-5,
    )
    qkv = random(140, 10 * dim, dtype=dtype)

    def cache() -> tuple[Tensor, Tensor]:
        k, v = torch.full((2, 9, 2, 16, dim), torch.nan, dtype=dtype)
        return k, v

    own, _ = ops(dtype, dim, 0, 140)
    whole = own.attention(qkv.clone(), layer, cache()).clone()
    _, plain = ops(dtype, dim, 0, 140)
    with monkeypatch.context() as patch:
        patch.setattr(library, "active", lambda: None)
        expected = plain.attention(qkv.clone(), layer, cache())
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(whole, expected, atol=tolerance, rtol=tolerance)
    for cuts in ([0, 7, 16, 17, 100, *range(101, 141)], [0, 70, 140]):
        torch.set_num_threads(2)
        pools, rows = cache(), []
        for start, end in pairwise(cuts):
            own, _ = ops(dtype, dim, start, end - start)
            rows.append(own.attention(qkv[start:end].clone(), layer, pools).clone())
        assert torch.equal(torch.cat(rows), whole)
