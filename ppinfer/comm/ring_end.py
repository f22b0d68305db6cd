"""The descriptors of a shared-memory ring: made by a launcher, inherited by two stages."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RingEnd:
    """Descriptors of one end of a ring: its memory, and its half of the socket pair."""

    memory_fd: int
    socket_fd: int

    @classmethod
    def pair(cls) -> tuple[RingEnd, RingEnd]:
        """The sender's and the receiver's end of a new ring."""
        memory = os.memfd_create("ppinfer-ring")
        try:
            sender, receiver = socket.socketpair()
        except OSError:
            os.close(memory)
            raise
        return cls(memory, sender.detach()), cls(os.dup(memory), receiver.detach())

    @property
    def fds(self) -> tuple[int, int]:
        return self.memory_fd, self.socket_fd

    def close(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def ring_of(num_stages: int) -> list[tuple[RingEnd, RingEnd]]:
    """For each stage its inbound and outbound end: link i leads from stage i to the one after it.

    Empty for a single stage, which has nobody to talk to.
    """
    if num_stages == 1:
        return []
    links: list[tuple[RingEnd, RingEnd]] = []
    try:
        for _ in range(num_stages):
            links.append(RingEnd.pair())
    except OSError:
        for end in (end for link in links for end in link):
            end.close()
        raise
    return [(links[stage - 1][1], links[stage][0]) for stage in range(num_stages)]
