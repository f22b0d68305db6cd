"""The paged KV cache of one stage: storage only; which block is whose is the driver's to say."""

from __future__ import annotations

import torch

from ppinfer.kernels.heap import mapped_zeros


class KVCache:
    """K and V of every layer of a stage, each ``(num_blocks, kv_heads, block_size, head_dim)``.

    On the CPU the memory is mapped but not touched, so it counts as resident only as blocks
    fill. Everything starts as zeros: attention multiplies masked positions by zero, which is
    exact only for finite values. In what order a block holds its numbers is the kernels' affair.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        self.layers = [
            (_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(num_layers)
        ]


def block_bytes(
    num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes of one block id on a stage: K and V of all its layers."""
    return 2 * num_layers * num_kv_heads * block_size * head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return mapped_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)
