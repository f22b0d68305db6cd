"""Tensors between two processes of one host: a ring in shared memory, a socket pair to wake by.

Both ends know every size beforehand, so they agree on where in the ring each tensor lies without
saying so. The sender copies a tensor in and sends one byte; the receiver waits for the byte, copies
the tensor out, and sends one byte back, which frees the place. A byte through the kernel orders the
memory accesses before it, and end-of-file tells each side of the other's death.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
from collections import deque

import torch

from ppinfer.comm.ring_end import RingEnd
from ppinfer.errors import StageError

_ALIGNMENT = 64

_MANY = 32
"""Tensors of which the sender does not know that they were copied out, when it looks: seldom, since
looking costs a system call, and before the bytes that say so fill the socket."""


class _Ring:
    """What both ends share: the memory, the socket, and where the next tensor lies."""

    def __init__(self, end: RingEnd, num_bytes: int, neighbour: int, timeout: float) -> None:
        os.ftruncate(end.memory_fd, num_bytes)
        pages = mmap.mmap(end.memory_fd, num_bytes)
        os.close(end.memory_fd)
        self.neighbour = neighbour
        self.timeout = timeout
        self.socket = socket.socket(fileno=end.socket_fd)
        self.socket.setblocking(True)
        seconds, fraction = divmod(timeout, 1)
        limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.socket.setsockopt(socket.SOL_SOCKET, option, limit)
        self._pages = pages
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        self._position = 0

    def next_place(self, num_bytes: int) -> tuple[int, int]:
        """First byte and the one after the last of the next tensor; no tensor wraps around."""
        assert num_bytes <= len(self._pages), "a tensor is larger than the ring was made for"
        start = self._position if self._position + num_bytes <= len(self._pages) else 0
        self._position = start + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return start, start + num_bytes

    def write(self, start: int, tensor: torch.Tensor) -> None:
        ctypes.memmove(self._address + start, tensor.data_ptr(), tensor.nbytes)

    def read(self, start: int, tensor: torch.Tensor) -> None:
        ctypes.memmove(tensor.data_ptr(), self._address + start, tensor.nbytes)

    def close(self) -> None:
        self.socket.close()


class ShmReceive:
    """The next tensor of a ring; must be awaited in the order of posting."""

    def __init__(self, ring: _Ring, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._ring, self._shape, self._dtype = ring, shape, dtype

    def wait(self) -> torch.Tensor:
        ring, source = self._ring, self._ring.neighbour
        try:
            came = ring.socket.recv(1)
        except BlockingIOError:
            raise StageError(
                f"Nothing came from stage {source} within {ring.timeout:g} s.", stage=source
            ) from None
        except OSError as error:
            raise StageError(f"Nothing more came from stage {source}: {error}", stage=source) from (
                error
            )
        if not came:
            raise StageError(
                f"Nothing more came from stage {source}: it closed its link.", stage=source
            )
        tensor = torch.empty(self._shape, dtype=self._dtype)
        ring.read(ring.next_place(tensor.nbytes)[0], tensor)
        with contextlib.suppress(OSError):  # a sender that is gone needs no room
            ring.socket.send(b"\0")
        return tensor


class ShmInbox:
    def __init__(
        self, end: RingEnd, num_bytes: int, source: int, dtype: torch.dtype, timeout: float
    ) -> None:
        self._ring = _Ring(end, num_bytes, source, timeout)
        self._dtype = dtype

    def post(self, shape: tuple[int, ...]) -> ShmReceive:
        return ShmReceive(self._ring, shape, self._dtype)

    def close(self) -> None:
        self._ring.close()


class ShmOutbox:
    def __init__(self, end: RingEnd, num_bytes: int, target: int, timeout: float) -> None:
        self._ring = _Ring(end, num_bytes, target, timeout)
        self._taken: deque[tuple[int, int]] = deque()  # places not yet freed, oldest first

    def send(self, tensor: torch.Tensor) -> None:
        """Copies, so the tensor may be reused at once; blocks only while the ring is full."""
        assert tensor.is_contiguous()
        ring = self._ring
        start, end = ring.next_place(tensor.nbytes)
        try:
            if len(self._taken) >= _MANY:
                self._free(socket.MSG_DONTWAIT)
            while any(start < last and first < end for first, last in self._taken):
                self._free(0)
            ring.write(start, tensor)
            ring.socket.send(b"\0", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise StageError(
                f"Stage {ring.neighbour} took nothing within {ring.timeout:g} s.",
                stage=ring.neighbour,
            ) from None
        except OSError as error:
            raise StageError(
                f"Stage {ring.neighbour} took nothing more: {error}", stage=ring.neighbour
            ) from error
        self._taken.append((start, end))

    def _free(self, flags: int) -> None:
        """Take note of what the receiver has copied out; without flags wait for the first."""
        try:
            freed = self._ring.socket.recv(4096, flags)
        except BlockingIOError:
            if not flags:
                raise
            return
        if not freed:
            raise ConnectionError("it closed its link")
        for _ in freed:
            self._taken.popleft()

    def flush(self) -> None:
        """Nothing to wait for: what is in the ring can be read even after this process ends."""

    def close(self) -> None:
        self._ring.close()
