"""A link inside one process, for tests and for stages that share an address space."""

from __future__ import annotations

import queue

import torch

from ppinfer.errors import StageError


class MemoryLink:
    """Both ends of a link: an ``Inbox`` and an ``Outbox`` over one queue."""

    def __init__(self, dtype: torch.dtype, timeout: float = 30.0) -> None:
        self._tensors: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        self._dtype = dtype
        self._timeout = timeout

    def post(self, shape: tuple[int, ...]) -> MemoryReceive:
        return MemoryReceive(self, shape)

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        try:
            tensor = self._tensors.get(timeout=self._timeout)
        except queue.Empty:
            raise StageError(f"Nothing came within {self._timeout:g} s.") from None
        assert tuple(tensor.shape) == shape, f"{tuple(tensor.shape)} came, {shape} was planned"
        assert tensor.dtype == self._dtype
        return tensor

    def send(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        self._tensors.put(tensor.clone())

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryReceive:
    def __init__(self, link: MemoryLink, shape: tuple[int, ...]) -> None:
        self._link = link
        self._shape = shape

    def wait(self) -> torch.Tensor:
        return self._link.take(self._shape)
