"""How fast attention is on this machine: ``python -m ppinfer.kernels.measure [--json]``.

Decode is measured in bytes of the cache read a second, beside what a plain read of as many bytes
takes at best; prefill in multiply-adds that causal attention needs, two operations each. Decode
goes round the caches of several layers, so that none of them lies in a processor cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ppinfer.kernels.attention import paged_attention, write_kv
from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.heap import mapped_zeros
from ppinfer.kernels.native import library

_BLOCK = 16
_CACHE_BYTES = 160 << 20
"""Decode goes round this much, far more than a second-level cache holds."""

_SECONDS = 0.4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Shape:
    """``num_kv_heads`` heads of ``head_dim``, each shared by ``group_size`` query heads."""

    num_kv_heads: int = 3
    group_size: int = 3
    head_dim: int = 64

    def __str__(self) -> str:
        return f"{self.num_kv_heads * self.group_size}/{self.num_kv_heads} x {self.head_dim}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table; ``rate`` is GB/s or GFLOP/s."""

    kind: str
    path: str
    threads: int
    dtype: str
    heads: str
    lengths: str
    microseconds: float
    rate: float
    unit: str


SHAPES = (Shape(), Shape(1, 8), Shape(3, 3, 80), Shape(3, 3, 96), Shape(3, 3, 128))


def read_bandwidth(dtype: str) -> Measured:
    """A plain sum over memory, by the threads that torch has."""
    data = mapped_zeros((_CACHE_BYTES // 4,), torch.float32).fill_(1)
    kernels, threads = library.active(), torch.get_num_threads()
    if kernels is None:
        seconds = _median(lambda: data.view(torch.int64).max())
    else:
        seconds = _median(lambda: kernels.read(data.data_ptr(), data.numel(), threads))
    return _row("plain read", dtype, "", "", seconds, data.nbytes / seconds / 1e9, "GB/s")


def decode(lengths: Sequence[int], shape: Shape, dtype: str) -> Measured:
    """One new token of each of some sequences, in GB/s of cached keys and values."""
    kv = 2 * shape.num_kv_heads * shape.head_dim * DTYPES[dtype].itemsize
    needed = sum(lengths) * kv
    layers = max(2, -(-_CACHE_BYTES // needed))
    tables, count = _tables(lengths)
    caches = [_cache(count, shape, dtype) for _ in range(layers)]
    batch = AttentionBatch.build(
        [n - 1 for n in lengths],
        [1] * len(lengths),
        tables,
        _BLOCK,
        config=shape,
        device=torch.device("cpu"),
    )
    q, k, v = _tokens(len(lengths), shape, dtype)

    def go_round() -> None:
        for cache in caches:
            write_kv(k, v, cache, batch)
            paged_attention(q, cache, batch)

    seconds = _median(go_round) / layers
    return _row(
        "decode", dtype, str(shape), _words(lengths), seconds, needed / seconds / 1e9, "GB/s"
    )


def prefill(lengths: Sequence[int], shape: Shape, dtype: str) -> Measured:
    """Whole prompts at once."""
    tables, count = _tables(lengths)
    cache = _cache(count, shape, dtype)
    batch = AttentionBatch.build(
        [0] * len(lengths), lengths, tables, _BLOCK, config=shape, device=torch.device("cpu")
    )
    q, k, v = _tokens(sum(lengths), shape, dtype)

    def once() -> None:
        write_kv(k, v, cache, batch)
        paged_attention(q, cache, batch)

    seconds = _median(once)
    pairs = sum(n * (n + 1) // 2 for n in lengths) * shape.num_kv_heads * shape.group_size
    operations = pairs * shape.head_dim * 4
    return _row(
        "prefill",
        dtype,
        str(shape),
        _words(lengths),
        seconds,
        operations / seconds / 1e9,
        "GFLOP/s",
    )


def measure_all() -> list[Measured]:
    ragged = [64 + 68 * i for i in range(16)]
    rows = []
    for dtype in DTYPES:
        rows.append(read_bandwidth(dtype))
        rows += [decode([576] * 16, shape, dtype) for shape in SHAPES]
        rows.append(decode(ragged, SHAPES[0], dtype))
        rows += [prefill([512] * 16, shape, dtype) for shape in SHAPES]
        rows.append(prefill([128] * 32, SHAPES[0], dtype))
    return rows


def _row(
    kind: str, dtype: str, heads: str, lengths: str, seconds: float, rate: float, unit: str
) -> Measured:
    kernels = library.active()
    path = "torch" if kernels is None else kernels.path
    micro = round(seconds * 1e6, 1)
    return Measured(
        kind, path, torch.get_num_threads(), dtype, heads, lengths, micro, round(rate, 2), unit
    )


def _words(lengths: Sequence[int]) -> str:
    least, most = min(lengths), max(lengths)
    return f"{len(lengths)} x {least}" if least == most else f"{len(lengths)} x {least}-{most}"


def _tables(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Blocks in no order, as after a while of use."""
    counts = [-(-n // _BLOCK) for n in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    return [[order.pop() for _ in range(n)] for n in counts], sum(counts)


def _cache(count: int, shape: Shape, dtype: str) -> tuple[Tensor, Tensor]:
    size = (count, shape.num_kv_heads, _BLOCK, shape.head_dim)
    k, v = (mapped_zeros(size, DTYPES[dtype]).fill_(0.01) for _ in range(2))
    return k, v


def _tokens(count: int, shape: Shape, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads, dim = shape.num_kv_heads, shape.head_dim
    q, k, v = (
        torch.randn(count, n, dim, generator=generator).to(DTYPES[dtype])
        for n in (heads * shape.group_size, heads, heads)
    )
    return q, k, v


def _median(work: Callable[[], object]) -> float:
    """Seconds of one call, after a warm-up."""
    work()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="ppinfer.kernels.measure", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.add_argument("--threads", type=int, default=1, help="threads that work (1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        rows = measure_all()
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{rows[0].path}, {rows[0].threads} thread(s)")
    for row in rows:
        print(
            f"{row.kind:<10} {row.dtype:<5} {row.heads:<10} {row.lengths:<14} "
            f"{row.microseconds:>10.0f} us {row.rate:>8.1f} {row.unit}"
        )


if __name__ == "__main__":
    main()
