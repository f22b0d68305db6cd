"""Memory past the C library."""

from __future__ import annotations

from pathlib import Path

import torch

from ppinfer.kernels import heap
from ppinfer.kernels.heap import lasting, mapped_zeros


def test_mapped_zeros_are_zeros_that_can_be_written() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pool = mapped_zeros((3, 2, 16, 6), dtype)
        assert pool.shape == (3, 2, 16, 6)
        assert pool.dtype == dtype
        assert pool.count_nonzero() == 0
        assert pool.data_ptr() % 64 == 0
        pool[1] = 1.0
        assert pool.sum() == 192


def test_lasting_tensors_share_blocks_and_outlive_each_other() -> None:
    first = lasting((1000, 3), torch.float32)
    second = lasting((7,), torch.bfloat16)
    large = lasting((40 << 20,), torch.bfloat16)
    for tensor in (first, second):
        assert tensor.data_ptr() % 64 == 0
        assert not tensor.any()
    assert second.data_ptr() - first.data_ptr() == 12032
    first.fill_(1)
    second.fill_(2)
    large[-1] = 3
    del first, large
    assert second.tolist() == [2] * 7
    third = lasting((5,), torch.float32)
    third.fill_(4)
    assert second.tolist() == [2] * 7


def test_a_block_of_lasting_tensors_is_given_back() -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    before = resident()
    tensors = [lasting((8 << 20,), torch.float32).fill_(1) for _ in range(6)]  # 32 MB each
    assert resident() - before > 150 << 20
    del tensors
    assert resident() - before < 80 << 20  # the last block may hold an older tensor


def test_a_block_that_was_given_back_gives_nothing() -> None:
    """Another thread may drop the last tensor at any moment."""
    block = heap._Block(1 << 20)
    tensor = block.take(100)
    assert tensor is not None
    assert block.take(1 << 20) is None, "no room"
    del tensor
    assert block.take(100) is None
