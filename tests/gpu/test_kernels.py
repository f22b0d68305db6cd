"""The kernels in Triton: right, and no bit of a row depends on its company.

Triton's interpreter shows the first on a CPU, and the second where tiles are the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ppinfer.kernels.attention import AttentionBatch
from ppinfer.kernels.elementwise import gated_silu, rms_norm
from ppinfer.kernels.ops import AttentionLayer, TorchOps
from ppinfer.models.rope import RotaryTable
from ppinfer.models.rope_config import RopeConfig

IS_REAL = torch.cuda.is_available()
DTYPES = [torch.float32, *([torch.float16, torch.bfloat16] if IS_REAL else [])]
COUNTS = (1, 2, 15, 16, 17, 33, 64, 65, 129, 300, 700) if IS_REAL else (1, 2, 17, 65, 130)
PRODUCTS = [(1100, 130), (576, 200), *([(1536, 576), (4096, 512)] if IS_REAL else [])]
HEADS = [(6, 2, 24, None), (4, 4, 16, 40)]
if IS_REAL:  # Triton's interpreter is slow, and multiplies no bf16
    HEADS += [(32, 8, 128, None), (9, 3, 64, 400), (20, 1, 80, None)]


@dataclass
class Shape:
    num_kv_heads: int
    group_size: int
    head_dim: int


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def bound(dtype: torch.dtype) -> float:
    return {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), PRODUCTS)
def test_products(device: torch.device, dtype: torch.dtype, inputs: int, outputs: int) -> None:
    from ppinfer.kernels.gpu.product import product

    torch.manual_seed(0)
    x = torch.randn(COUNTS[-1], inputs).to(device, dtype)
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(device, dtype)
    bias = torch.randn(outputs).to(device, dtype)
    whole = product(x, weight, bias)
    assert error(whole, x.double() @ weight.double().T + bias.double()) < bound(dtype)
    for count in COUNTS:
        for part in (slice(count), slice(-count, None)):
            found = product(x[part], weight, bias)
            if IS_REAL:
                assert torch.equal(found, whole[part]), count
            else:  # NumPy's own products vary with the tile
                assert error(found, whole[part].double()) < bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_and_gates(device: torch.device, dtype: torch.dtype) -> None:
    from ppinfer.kernels.gpu import rows

    torch.manual_seed(0)
    x, addend = (torch.randn(33, 2000).to(device, dtype) for _ in range(2))
    weight = torch.rand(2000).to(device, dtype)
    summed = x.clone()
    normed = rows.norm(summed, addend, weight, 1e-5)
    assert torch.equal(summed, x + addend)
    assert error(normed, rms_norm(x + addend, weight, 1e-5).double()) < bound(dtype)
    assert error(rows.gated_silu(x), gated_silu(x).double()) < bound(dtype)
    for row in (0, 7, 32):
        part = slice(row, row + 1)
        assert torch.equal(rows.norm(x[part].clone(), addend[part], weight, 1e-5), normed[part])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "window"), HEADS)
def test_attention(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int | None,
) -> None:
    """A prompt, single tokens and chunks beside each other, alone, and as a padded decode step."""
    from ppinfer.kernels.gpu.attention import paged_attention
    from ppinfer.kernels.gpu.step import Packed, StepArrays, pack, pack_decode

    starts, lengths = (
        ([0, 1700, 517, 100], [600, 1, 30, 1]) if IS_REAL else ([0, 530, 1100], [40, 3, 1])
    )
    group = heads // kv_heads
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    torch.manual_seed(0)
    blocks = torch.randperm(sum(-(-end // 16) for end in ends)).tolist()
    tables = [[blocks.pop() for _ in range(-(-end // 16))] for end in ends]
    shape = (sum(map(len, tables)), kv_heads, 16, dim)
    pools = (torch.randn(shape).to(device, dtype), torch.randn(shape).to(device, dtype))
    q = torch.randn(sum(lengths), heads, dim).to(device, dtype)

    def attend(q: Tensor, packed: Packed) -> Tensor:
        return paged_attention(q, pools, StepArrays(packed, packed.send(device)), window)

    whole = attend(q, pack(starts, lengths, tables, 16, group))
    at = 0
    for start, length, table in zip(starts, lengths, tables, strict=True):
        k, v = (
            pool[table].double().transpose(1, 2).reshape(-1, kv_heads, dim)[: start + length]
            for pool in pools
        )
        k, v = (each.repeat_interleave(group, 1) for each in (k, v))
        scores = torch.einsum("thd,shd->ths", q[at : at + length].double(), k) / dim**0.5
        key = torch.arange(start + length, device=device)
        query = torch.arange(start, start + length, device=device)[:, None]
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
        expected = torch.einsum("ths,shd->thd", weights, v)
        assert error(whole[at : at + length], expected) < bound(dtype)
        for first, last in {(0, length), (length - 1, length), (length // 3, length)}:
            alone = attend(
                q[at + first : at + last], pack([start + first], [last - first], [table], 16, group)
            )
            assert torch.equal(alone, whole[at + first : at + last])
        at += length
    last = torch.tensor(lengths).cumsum(0) - 1
    padded = torch.cat((q[last], q[:3]))
    packed = pack_decode([end - 1 for end in ends], tables, 16, group, len(padded), 4)
    assert torch.equal(attend(padded, packed)[: len(ends)], whole[last])


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_and_writing(device: torch.device, dtype: torch.dtype, has_norm: bool) -> None:
    """Against plain PyTorch: a prompt, then single tokens upon what both have written."""
    from ppinfer.kernels.gpu.ops import GpuOps

    heads, kv_heads, dim = 6, 2, 24
    torch.manual_seed(0)
    norms = [torch.rand(dim).to(device, dtype) if has_norm else None for _ in range(2)]
    layer = AttentionLayer(heads, kv_heads, dim, None, *norms, eps=1e-5)
    rotary = RotaryTable(RopeConfig(theta=10000.0), dim, dtype, device)
    shape = (6, kv_heads, 16, dim)
    pools = torch.zeros((4, *shape), dtype=dtype, device=device)
    caches = [(pools[0], pools[1]), (pools[2], pools[3])]
    for starts, lengths in (([0, 0], [20, 3]), ([20, 3], [1, 1])):
        batch = AttentionBatch.build(
            starts, lengths, [[4, 1], [3]], 16, config=Shape(kv_heads, heads // kv_heads, dim),
            device=device,
        )  # fmt: skip
        qkv = torch.randn(sum(lengths), (heads + 2 * kv_heads) * dim).to(device, dtype)
        plain = TorchOps(batch, rotary).attention(qkv.clone(), layer, caches[0])
        ours = GpuOps(batch.gpu, rotary.tables(batch.num_positions))
        assert error(ours.attention(qkv, layer, caches[1]), plain.double()) < 2 * bound(dtype)
