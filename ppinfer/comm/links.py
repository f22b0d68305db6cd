"""Opening a stage's links: which transport, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppinfer.comm.broadcast import BroadcastInbox, BroadcastOutbox
from ppinfer.comm.group import make_link_group, open_store
from ppinfer.comm.p2p import P2PInbox, P2POutbox
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.comm.transport import Inbox, Outbox

_TRANSPORTS: dict[str, tuple[type[P2PInbox], type[P2POutbox]]] = {
    "p2p": (P2PInbox, P2POutbox),
    "broadcast": (BroadcastInbox, BroadcastOutbox),
}


def choose_transport(comm: str, num_stages: int) -> str:
    """``auto`` keeps the original rule: point-to-point at two stages, broadcast above."""
    if comm == "auto":
        return "p2p" if num_stages <= 2 else "broadcast"
    return comm


@dataclass(slots=True)
class Links:
    """A stage's two ends: ``inbox`` from the stage before, ``outbox`` to the stage after."""

    inbox: Inbox | None = None
    outbox: Outbox | None = None

    def close(self) -> None:
        for end in (self.inbox, self.outbox):
            if end is not None:
                end.close()


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
) -> Links:
    """Join the groups of both neighbours, the upstream one first, so that no ring can form.

    Raises:
        StageError: a neighbour did not come in time; it is named.
    """
    links = Links()
    if manager.num_stages == 1:
        return links
    inbox_type, outbox_type = _TRANSPORTS[choose_transport(comm, manager.num_stages)]
    opened = open_store(store, timeout)

    def group(link: int, rank: int) -> object:
        return make_link_group(
            opened,
            generation=generation,
            link=link,
            rank=rank,
            device=device,
            address=address,
            timeout=timeout,
        )

    # A first exchange, of one element: NCCL connects only then.
    if manager.previous is not None:
        links.inbox = inbox_type(group(manager.previous, 1), manager.previous, dtype, device)
        links.inbox.post((1,)).wait()
    if manager.next is not None:
        links.outbox = outbox_type(group(manager.stage, 0), manager.next, send_depth)
        links.outbox.send(torch.zeros(1, dtype=dtype, device=device))
        links.outbox.flush()
    return links
