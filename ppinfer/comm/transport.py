"""The seam between a stage and what carries its hidden states.

A link joins two neighbours in one direction. Both ends know every shape beforehand from the plans,
and use the link in plan order, so no header travels and a receive may be posted long before its
sender sends. Transports know tensors, not models.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Receive(Protocol):
    """A receive that was posted."""

    def wait(self) -> torch.Tensor:
        """Block until the tensor is here. Raises ``StageError`` if it never comes."""
        ...


class Inbox(Protocol):
    """The receiving end of a link."""

    def post(self, shape: tuple[int, ...]) -> Receive:
        """Ask for the next tensor of the link, without waiting for it."""
        ...

    def close(self) -> None: ...


class Outbox(Protocol):
    """The sending end of a link."""

    def send(self, tensor: torch.Tensor) -> None:
        """Hand a contiguous tensor over and return; it must not be written to afterwards.

        Raises ``StageError`` where an earlier send turned out to have failed.
        """
        ...

    def flush(self) -> None:
        """Block until every tensor handed over has left."""
        ...

    def close(self) -> None: ...


class Work(Protocol):
    """What torch.distributed returns for an operation under way."""

    def wait(self) -> bool: ...


class PendingSends:
    """Keeps sent tensors alive until they have left.

    Gloo's work cannot be polled, so instead of asking, the oldest send is awaited once more than
    ``depth`` are outstanding; with a receiver that keeps up it has long finished.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pending: deque[tuple[Work, torch.Tensor]] = deque()

    def add(self, work: Work, tensor: torch.Tensor) -> None:
        self._pending.append((work, tensor))
        while len(self._pending) > self._depth:
            self._pending.popleft()[0].wait()

    def drain(self) -> None:
        while self._pending:
            self._pending.popleft()[0].wait()
