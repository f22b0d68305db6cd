"""A row's bits depend on its own sequence alone: the promise that everything else builds on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import Chain, make_model, random_ids, save_model
from torch import Tensor

from ppinfer.kernels.native import library, paths

DTYPES = [torch.float32, torch.bfloat16]
LENGTHS = [1, 2, 3, 5, 8, 17, 31, 64, 127, 128, 129, 150, 33, 90, 4, 77]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sizes throughout: groups of 3, heads of 20, an MLP of 92; one layer is windowed."""
    model = make_model(
        "qwen2",
        hidden_size=60,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=20,
        intermediate_size=92,
        num_hidden_layers=4,
        use_sliding_window=True,
        sliding_window=37,
        max_window_layers=3,
    )
    return save_model(model, tmp_path_factory.mktemp("odd"))


def alone(folder: Path, dtype: torch.dtype, prompts: list[list[int]]) -> list[Tensor]:
    chain = Chain(folder, dtype=dtype)
    return [chain.run(ids) for ids in prompts]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        rows = (a != b).any(-1).nonzero().flatten().tolist()
        assert not rows, f"sequence {i} of {len(b)} tokens differs in rows {rows[:10]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 16])
def test_batches(folder: Path, dtype: torch.dtype, size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    prompts = [random_ids(n, seed) for seed, n in enumerate(LENGTHS[:size])]
    expected = alone(folder, dtype, prompts)
    chain = Chain(folder, dtype=dtype)
    got = chain.step([(i, 0, ids) for i, ids in enumerate(prompts)])
    assert_same(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_decode_in_a_batch_of_32(folder: Path, dtype: torch.dtype) -> None:
    """Every sequence one token a step, all at different positions, blocks of others used before."""
    prompts = [random_ids(LENGTHS[i % 16] + 12, i) for i in range(32)]
    expected = alone(folder, dtype, prompts)
    chain = Chain(folder, dtype=dtype, num_blocks=400)
    chain.step([(i, 0, random_ids(160, 100 + i)) for i in range(32)])
    chain.release()
    parts = [(i, 0, ids[:-12]) for i, ids in enumerate(prompts)]
    got = [[logits] for logits in chain.step(parts)]
    for back in range(12, 0, -1):
        parts = [(i, len(ids) - back, [ids[-back]]) for i, ids in enumerate(prompts)]
        for rows, logits in zip(got, chain.step(parts), strict=True):
            rows.append(logits)
    assert_same([torch.cat(rows) for rows in got], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [7, 16, 64])
def test_chunks(folder: Path, dtype: torch.dtype, chunk: int) -> None:
    """Chunked, beside a decoding sequence that comes and goes."""
    ids = random_ids(150)
    (expected,) = alone(folder, dtype, [ids])
    chain = Chain(folder, dtype=dtype)
    got, other = [], random_ids(60, 1)
    chain.step([(1, 0, other[:20])])
    for step, start in enumerate(range(0, len(ids), chunk)):
        parts = [(0, start, ids[start : start + chunk])]
        if step % 3:
            parts.insert(step % 2, (1, 20 + step, [other[20 + step]]))
        got += [rows for (s, *_), rows in zip(parts, chain.step(parts), strict=True) if s == 0]
    assert_same([torch.cat(got)], [expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("path", [*(path.name for path in paths.available()), "torch"])
def test_kernel_paths(
    folder: Path, path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them, in chunks beside another sequence; and close to the plain one."""
    ids, other = random_ids(150), random_ids(60, 1)
    monkeypatch.setenv(library.VARIABLE, "torch")
    library.choice.cache_clear()
    (plain,) = alone(folder, dtype, [ids])
    monkeypatch.setenv(library.VARIABLE, path)
    library.choice.cache_clear()
    try:
        (expected,) = alone(folder, dtype, [ids])
        chain = Chain(folder, dtype=dtype)
        got = []
        for start in range(0, 150, 15):
            parts = [
                (1, start // 3, other[start // 3 : start // 3 + 5]),
                (0, start, ids[start : start + 15]),
            ]
            got.append(chain.step(parts)[1])
        assert_same([torch.cat(got)], [expected])
    finally:
        library.choice.cache_clear()
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(expected, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2), (1, 3), (1, 2, 3)])
def test_partitions(folder: Path, dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
    ids = random_ids(70)
    assert_same([Chain(folder, cuts, dtype).run(ids, [33])], alone(folder, dtype, [ids]))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_computed_again_from_a_later_start(folder: Path, dtype: torch.dtype) -> None:
    """As after a stage's death, or on a prefix that another request left in the cache."""
    ids = random_ids(150)
    chain = Chain(folder, dtype=dtype)
    (expected,) = chain.step([(0, 0, ids)])
    for start in (149, 144, 128, 100, 1):
        (again,) = chain.step([(0, start, ids[start:])])
        assert_same([again], [expected[start:]])


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_block_sizes(folder: Path, block_size: int) -> None:
    ids = random_ids(150)
    chain = Chain(folder, block_size=block_size)
    assert_same([chain.run(ids, [70, 1])], alone(folder, torch.float32, [ids]))


def test_what_a_block_held_before_does_not_matter(folder: Path) -> None:
    """Not even if it is no number: one request's overflow must not reach the next."""
    ids = random_ids(50)
    chain = Chain(folder)
    expected = chain.run(ids)
    dirty = Chain(folder)
    for layers in dirty.caches:
        for pools in layers:
            for pool in pools:
                pool.fill_(torch.nan)
    assert_same([dirty.run(ids, [7, 16])], [expected])
