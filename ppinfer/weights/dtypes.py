"""How tensors are stored in files: bytes of a type, and the names of both formats (no torch)."""

from __future__ import annotations

PLAIN = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that safetensors and GGUF share, and their bytes an element."""


def plain_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of one of the ``PLAIN`` types."""
    count = PLAIN[dtype]
    for size in shape:
        count *= size
    return count
