"""What the C library does with memory that is freed: give it back, or keep it for the next tensor.

By default glibc learns from the sizes it sees, up to 32 MB, and then keeps freed buffers of that
size. While weights are loaded that would be a second copy of some of them; between steps it spares
the kernel from clearing the same pages again and again. Without glibc both functions do nothing.

``mapped_zeros`` is memory past the C library, for what is large and lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
_LOAD_BYTES = 1 << 20
_MOST_BYTES = 32 << 20  # glibc's own maximum for a buffer out of its heap
_KEEP_BYTES = 256 << 20


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Give large buffers back to the system when they are freed; afterwards keep them."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LOAD_BYTES)
    try:
        yield
    finally:
        library.malloc_trim(0)
        library.mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)


def mapped_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU that are resident only where they have been written to.

    In large pages where the system has them: reading scattered pieces of a few kilobytes is up to a
    fifth faster so.
    """
    count = math.prod(shape)
    # torch.zeros would write, and so make resident, every page at once.
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library
