"""What the C library does with memory that is freed: give it back, or keep it for the next tensor.

By default glibc learns from the sizes it sees, up to 32 MB, and then keeps freed buffers of that
size. While weights are loaded that would be a second copy of some of them; between steps it spares
the kernel from clearing the same pages again and again. Without glibc both functions do nothing.

``mapped_zeros`` and ``lasting`` are memory past the C library, for what is large and lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
_LOAD_BYTES = 1 << 20
_MOST_BYTES = 32 << 20  # glibc's own maximum for a buffer out of its heap
_KEEP_BYTES = 256 << 20
_LARGE_PAGE = 2 << 20
_BLOCK_BYTES = 64 << 20

_blocks: list[_Block] = []
_lock = threading.Lock()


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
    return torch.frombuffer(_pages(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


def lasting(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros for weights: tensors side by side, since one alone may not fill a large page.

    Streaming through large pages is a seventh faster. A block of such tensors is given back when
    the last of them is gone.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    with _lock:
        for block in _blocks:
            if (tensor := block.take(size)) is not None:
                break
        else:
            block = _Block(max(size, _BLOCK_BYTES))
            _blocks[:] = [block, *(other for other in _blocks if other.has(_LARGE_PAGE))]
            tensor = block.take(size)
            assert tensor is not None
    return tensor.view(dtype).view(shape)


class _Block:
    """Memory given out from its beginning to its end, aligned to lines of the cache."""

    def __init__(self, size: int) -> None:
        pages = _pages(size + _LARGE_PAGE)
        self._pages = weakref.ref(pages)
        self._first_use: mmap.mmap | None = pages
        self._start = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % _LARGE_PAGE
        self._end = self._start + size

    def has(self, size: int) -> bool:
        return self._pages() is not None and self._end - self._start >= size

    def take(self, size: int) -> torch.Tensor | None:
        """``None`` where there is no room, or all tensors of the block are gone."""
        pages = self._pages()  # held, since another thread may drop the last tensor meanwhile
        if pages is None or self._end - self._start < size:
            return None
        tensor = torch.frombuffer(pages, dtype=torch.uint8, count=size, offset=self._start)
        self._first_use = None  # from now on the tensors alone hold the memory
        self._start += -(-size // 64) * 64
        return tensor


def _pages(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library
