"""Opening a stage's links: which transport, in which order.

The links of a pipeline form a ring: link i leads from stage i to the one after it, and the last one
back to stage 0. Hidden states travel on all but that one, which carries the ids of sampled tokens:
so stage 0 can go on with them before the driver has heard of them.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch

from ppinfer.comm.broadcast import BroadcastInbox, BroadcastOutbox
from ppinfer.comm.group import make_link_group, open_store
from ppinfer.comm.p2p import P2PInbox, P2POutbox
from ppinfer.comm.ring_end import RingEnd
from ppinfer.comm.shm import ShmInbox, ShmOutbox
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.comm.transport import Inbox, Outbox

_GROUP_TRANSPORTS: dict[str, tuple[type[P2PInbox], type[P2POutbox]]] = {
    "p2p": (P2PInbox, P2POutbox),
    "broadcast": (BroadcastInbox, BroadcastOutbox),
}
TRANSPORTS = ("shm", *_GROUP_TRANSPORTS)

TOKEN_DTYPE = torch.int64


@dataclass(slots=True)
class Links:
    """A stage's ends of its links.

    ``inbox`` and ``outbox`` carry hidden states ``(tokens, hidden_size)`` from the stage before and
    to the stage after. ``token_outbox`` of the last stage and ``token_inbox`` of the first carry
    ids (sequences,) of int64; a pipeline of one stage has neither.
    """

    inbox: Inbox | None = None
    outbox: Outbox | None = None
    token_inbox: Inbox | None = None
    token_outbox: Outbox | None = None

    def close(self) -> None:
        for end in (self.inbox, self.outbox, self.token_inbox, self.token_outbox):
            if end is not None:
                end.close()


@dataclass(frozen=True, slots=True)
class Rings:
    """A stage's ends of the shared-memory rings that its launcher made, and their sizes.

    Both ends of a ring must be told the same size.
    """

    inbound: RingEnd
    outbound: RingEnd
    hidden_bytes: int
    token_bytes: int

    @classmethod
    def sized(
        cls,
        inbound: RingEnd,
        outbound: RingEnd,
        *,
        hidden_bytes: int,
        max_sequences: int,
        depth: int,
    ) -> Rings:
        """Rings that hold ``depth`` of the largest messages: ``hidden_bytes``, and all ids."""
        hidden, tokens = (
            depth * _whole_pages(size)
            for size in (hidden_bytes, max_sequences * TOKEN_DTYPE.itemsize)
        )
        return cls(inbound, outbound, hidden, tokens)


def open_links(
    manager: PipelineStageManager,
    *,
    comm: str,
    store: str,
    generation: int,
    address: str,
    dtype: torch.dtype,
    device: torch.device,
    send_depth: int,
    timeout: float,
    rings: Rings | None = None,
) -> Links:
    """Join both neighbours, the link with the lower number first, so that no wait forms a ring.

    Args:
        comm: one of ``TRANSPORTS``; ``shm`` needs ``rings``, the others need ``store``.

    Raises:
        StageError: a neighbour did not come in time; it is named.
    """
    if manager.num_stages == 1:
        return Links()
    if comm == "shm":
        assert rings is not None, "the launcher made no rings"
        return _open_rings(manager, rings, dtype, timeout)
    opened = open_store(store, timeout)
    inbox_type, outbox_type = _GROUP_TRANSPORTS[comm]
    links = Links()

    def group(link: int, rank: int) -> object:
        return make_link_group(
            opened,
            generation=generation,
            link=link,
            rank=rank,
            num_stages=manager.num_stages,
            device=device,
            address=address,
            timeout=timeout,
        )

    def receive_over(link: int, kind: torch.dtype) -> Inbox:
        inbox = inbox_type(group(link, 1), link, kind, device)
        inbox.post((1,)).wait()  # a first exchange, of one element: NCCL connects only then
        return inbox

    def send_over(link: int, kind: torch.dtype) -> Outbox:
        outbox = outbox_type(group(link, 0), (link + 1) % manager.num_stages, send_depth)
        outbox.send(torch.zeros(1, dtype=kind, device=device))
        outbox.flush()
        return outbox

    if manager.previous is not None:
        links.inbox = receive_over(manager.previous, dtype)
    if manager.next is not None:
        links.outbox = send_over(manager.stage, dtype)
    else:
        links.token_outbox = send_over(manager.stage, TOKEN_DTYPE)
    if manager.is_first:
        links.token_inbox = receive_over(manager.num_stages - 1, TOKEN_DTYPE)
    return links


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _open_rings(
    manager: PipelineStageManager, rings: Rings, dtype: torch.dtype, timeout: float
) -> Links:
    before = (manager.stage - 1) % manager.num_stages
    after = (manager.stage + 1) % manager.num_stages
    links = Links()
    if manager.is_first:
        links.token_inbox = ShmInbox(rings.inbound, rings.token_bytes, before, TOKEN_DTYPE, timeout)
    else:
        links.inbox = ShmInbox(rings.inbound, rings.hidden_bytes, before, dtype, timeout)
    if manager.is_last:
        links.token_outbox = ShmOutbox(rings.outbound, rings.token_bytes, after, timeout)
    else:
        links.outbox = ShmOutbox(rings.outbound, rings.hidden_bytes, after, timeout)
    return links
