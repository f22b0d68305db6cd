"""Memory past the C library."""

from __future__ import annotations

import torch

from ppinfer.kernels.heap import mapped_zeros


def test_mapped_zeros_are_zeros_that_can_be_written() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pool = mapped_zeros((3, 2, 16, 6), dtype)
        assert pool.shape == (3, 2, 16, 6)
        assert pool.dtype == dtype
        assert pool.count_nonzero() == 0
        assert pool.data_ptr() % 64 == 0
        pool[1] = 1.0
        assert pool.sum() == 192
