"""Paged attention against plain attention in double precision, and its promise about bits."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppinfer.kernels import paged_batch
from ppinfer.kernels.attention import AttentionBatch, paged_attention, write_kv

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("kernel_path")


class Sequences:
    """Random queries, keys and values of some sequences, and one pool for all."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        kv_heads: int = 2,
        group: int = 3,
        dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(heads: int, length: int) -> Tensor:
            return torch.randn(length, heads, dim, generator=generator).mul_(2).to(dtype)

        self.shape = SimpleNamespace(num_kv_heads=kv_heads, group_size=group, head_dim=dim)
        self.block_size = block_size
        self.q = [random(kv_heads * group, n) for n in lengths]
        self.k = [random(kv_heads, n) for n in lengths]
        self.v = [random(kv_heads, n) for n in lengths]
        counts = [-(-n // block_size) for n in lengths]
        order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        size = (sum(counts) + 3, kv_heads, block_size, dim)
        self.cache = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)

    def step(
        self, parts: Sequence[tuple[int, int, int]], window: int | None = None
    ) -> list[Tensor]:
        """Sequence, start and length of each part."""
        batch = AttentionBatch.build(
            [start for _, start, _ in parts],
            [length for _, _, length in parts],
            [self.tables[i] for i, _, _ in parts],
            self.block_size,
            config=self.shape,
            device=CPU,
        )

        def rows(source: list[Tensor]) -> Tensor:
            return torch.cat([source[i][start : start + n] for i, start, n in parts])

        with torch.inference_mode():
            write_kv(rows(self.k), rows(self.v), self.cache, batch)
            out = paged_attention(rows(self.q), self.cache, batch, window)
        return list(out.split([length for _, _, length in parts]))

    def whole(self, i: int, window: int | None = None) -> Tensor:
        return self.step([(i, 0, len(self.q[i]))], window)[0]

    def reference(self, i: int, window: int | None = None) -> Tensor:
        q, k, v = (x[i].double() for x in (self.q, self.k, self.v))
        k, v = (x.repeat_interleave(self.shape.group_size, 1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
        row, key = torch.arange(len(q))[:, None], torch.arange(len(q))[None]
        hidden = (key > row) if window is None else (key > row) | (key <= row - window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, v)


@pytest.mark.parametrize("window", [None, 1, 16, 128, 129, 200])
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
def test_equals_plain_attention(length: int, window: int | None) -> None:
    sequences = Sequences([length])
    got = sequences.whole(0, window).double()
    torch.testing.assert_close(got, sequences.reference(0, window), atol=5e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_depend_on_their_sequence_alone(data: st.DataObject) -> None:
    """Any shapes, any chunking, any company: the bits of a sequence computed alone and whole."""
    lengths = data.draw(st.lists(st.integers(1, 290), min_size=1, max_size=5), "lengths")
    window = data.draw(st.sampled_from([None, None, 1, 30, 150]), "window")
    sequences = Sequences(
        lengths,
        kv_heads=data.draw(st.sampled_from([1, 2, 3]), "kv_heads"),
        group=data.draw(st.sampled_from([1, 3, 4, 9]), "group"),
        dim=data.draw(st.sampled_from([2, 6, 10, 24, 64]), "dim"),
        block_size=data.draw(st.sampled_from([16, 32, 64, 128]), "block_size"),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype"),
    )
    expected = [sequences.whole(i, window) for i in range(len(lengths))]
    done = [0] * len(lengths)
    got: list[list[Tensor]] = [[] for _ in lengths]
    while any(n > 0 for n in (a - b for a, b in zip(lengths, done, strict=True))):
        parts = []
        for i, length in enumerate(lengths):
            most = length - done[i]
            count = data.draw(st.sampled_from([0, 1, 7, 16, 64, most]), "chunk")
            if 0 < count <= most:
                parts.append((i, done[i], count))
                done[i] += count
        if not parts:
            i = next(i for i, length in enumerate(lengths) if done[i] < length)
            parts, done[i] = [(i, done[i], lengths[i] - done[i])], lengths[i]
        for (i, *_), rows in zip(parts, sequences.step(parts, window), strict=True):
            got[i].append(rows)
    for i, rows in enumerate(got):
        assert torch.equal(torch.cat(rows), expected[i]), f"sequence {i}"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_batches_and_threads(threads: int) -> None:
    """Enough work for ATen to share out, in groups and pieces of every size."""
    sequences = Sequences([500, 300, 200, 1], kv_heads=3, dim=64)
    expected = [sequences.whole(i) for i in range(4)]
    torch.set_num_threads(threads)
    batch = sequences.step([(i, 0, len(q)) for i, q in enumerate(sequences.q)])
    for got, alone in zip(batch, expected, strict=True):
        assert torch.equal(got, alone)
    for start in (499, 400):
        (rows,) = sequences.step([(0, start, 500 - start)])
        assert torch.equal(rows, expected[0][start:])


def test_limits_change_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = Sequences([300, 41, 7])
    parts = [(i, 0, len(q)) for i, q in enumerate(sequences.q)]
    expected = sequences.step(parts)
    for piece, group in ((1, 1), (1 << 16, 7), (1 << 30, 1 << 20)):
        monkeypatch.setattr(paged_batch, "_CPU_PIECE_BYTES", piece)
        monkeypatch.setattr(paged_batch, "_CPU_GROUP_MATRICES", group)
        for got, same in zip(sequences.step(parts), expected, strict=True):
            assert torch.equal(got, same)


def test_sharp_scores_do_not_overflow() -> None:
    sequences = Sequences([200])
    sequences.q[0] *= 1e4
    assert sequences.whole(0).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rise", [-0.04, 0.004, 0.04])
def test_scores_that_rise_or_fall_along_the_context(rise: float, dtype: torch.dtype) -> None:
    """Later positions may outweigh all before them, by any factor, or none at all."""
    sequences = Sequences([400], dim=64, dtype=dtype)
    sequences.q[0].abs_()
    sequences.k[0] = (
        sequences.k[0].float().abs_().mul_(rise * torch.arange(400)[:, None, None] / 8).to(dtype)
    )
    tolerance = 5e-5 if dtype == torch.float32 else 0.04
    whole = sequences.whole(0)
    torch.testing.assert_close(
        whole.double(), sequences.reference(0), atol=tolerance, rtol=tolerance
    )
    got = [sequences.step([(0, start, 50)])[0] for start in range(0, 400, 50)]
    assert torch.equal(torch.cat(got), whole)


def test_blocks_of_others_are_out_of_reach() -> None:
    """Neither what an earlier owner left nor what a neighbour computes, even if it is no number."""
    sequences = Sequences([50, 50])
    expected = sequences.whole(0)
    for pool in sequences.cache:
        pool.fill_(torch.nan)
    sequences.v[1].fill_(torch.inf)
    sequences.step([(0, 0, 20), (1, 0, 50)])
    got, _ = sequences.step([(0, 20, 30), (1, 49, 1)])
    assert torch.equal(got, expected[20:])


def test_positions_and_slots() -> None:
    batch = AttentionBatch.build(
        [15, 0], [3, 2], [[7, 4], [2]], 16, config=Sequences([1]).shape, device=CPU
    )
    assert batch.index.positions.tolist() == [15, 16, 17, 0, 1]
    assert batch.num_positions == 18
    heads, size = 2, 16
    rows = [(7, 15), (4, 0), (4, 1), (2, 0), (2, 1)]
    expected = [(block * heads + h) * size + at for block, at in rows for h in range(heads)]
    assert batch.index.slots.tolist() == expected
    assert batch.index.fresh_blocks is not None
    assert sorted(batch.index.fresh_blocks.tolist()) == [2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim"),
    [
        (3, 3, 64),
        (1, 8, 64),
        (1, 1, 80),
        (2, 2, 96),
        (1, 7, 128),
        (1, 5, 40),
        (2, 6, 6),
        (1, 4, 256),
    ],
)
def test_head_shapes(kv_heads: int, group: int, dim: int, dtype: torch.dtype) -> None:
    """Every kind of head that the kernels treat in its own way, right and the same in chunks."""
    sequences = Sequences([167, 40], kv_heads=kv_heads, group=group, dim=dim, dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 0.04
    for window in (None, 50):
        whole = [sequences.whole(i, window) for i in range(2)]
        for i in range(2):
            torch.testing.assert_close(
                whole[i].double(), sequences.reference(i, window), atol=tolerance, rtol=tolerance
            )
        got = [
            sequences.step([(0, start, min(7, 167 - start))], window)[0]
            for start in range(0, 167, 7)
        ]
        assert torch.equal(torch.cat(got), whole[0])
        decoded = [sequences.step([(0, 127 + at, 1), (1, at, 1)], window) for at in range(40)]
        for i, rows in enumerate(zip(*decoded, strict=True)):
            assert torch.equal(torch.cat(rows), whole[i][127:167] if i == 0 else whole[i])


def test_a_head_too_large_for_the_native_kernels() -> None:
    sequences = Sequences([20], kv_heads=1, group=2, dim=258)
    torch.testing.assert_close(
        sequences.whole(0).double(), sequences.reference(0), atol=2e-5, rtol=1e-5
    )


def test_bits_do_not_depend_on_the_block_size() -> None:
    expected = Sequences([300]).whole(0)
    for block_size in (32, 64, 128):
        assert torch.equal(Sequences([300], block_size=block_size).whole(0), expected)
