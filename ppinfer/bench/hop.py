"""A stage that only hops: takes a tensor, computes for a while, hands it on.

The stages form the engine's ring: at most one message a stage is under way, since stage 0 sends the
next one only when one has come back from the last stage over the link that carries ids. Messages
carry the moment at which they were sent, so what a receiver waited for can be told apart from what
the transport took: the *delay* of a hop is the time from when both the message was sent and the
receiver asked for it until the receiver had it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppinfer.comm.links import TOKEN_DTYPE, Links, Rings, open_links
from ppinfer.comm.ring_end import RingEnd
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.percentile import percentile

_DTYPE = torch.bfloat16
_AHEAD = 3
_STAMP_BYTES = 8
_SIDE = 96
"""Rows and columns of the matrix product that stands for compute."""


class HopStage:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._links = Links()
        self._a = torch.randn(_SIDE, _SIDE)

    def calibrate(self, seconds: float) -> int:
        """How many products take so many seconds on a core that is free."""
        fastest = min(self._compute(100) for _ in range(50))
        return max(1, round(100 * seconds / fastest))

    def open(
        self,
        stage: int,
        stages: int,
        comm: str,
        store: str,
        timeout: float,
        largest: int,
        ring_fds: Sequence[int],
    ) -> None:
        """Join the neighbours by one transport, for messages of up to ``largest`` bytes.

        ``ring_fds`` are those of the inbound and the outbound end of shared-memory rings.
        """
        self._stages = stages
        ends = RingEnd(*ring_fds[:2]), RingEnd(*ring_fds[2:])
        self._links = open_links(
            PipelineStageManager(stage, stages, stage, stage + 1),
            comm=comm,
            store=store,
            generation=0,
            address="127.0.0.1",
            dtype=_DTYPE,
            device=torch.device("cpu"),
            send_depth=stages,
            timeout=timeout,
            rings=Rings.sized(*ends, hidden_bytes=largest, max_sequences=1, depth=stages + 1),
        )

    def hop(self, num_bytes: int, messages: int, products: int) -> dict[str, Any]:
        """Pass ``messages`` on; seconds of the whole, and what each message cost this stage."""
        shape = (max(num_bytes, 2 * _STAMP_BYTES) // 2,)
        links = self._links
        inbox, outbox = links.inbox or links.token_inbox, links.outbox or links.token_outbox
        assert inbox is not None
        assert outbox is not None
        is_first, is_last = links.inbox is None, links.outbox is None
        incoming = (1,) if is_first else shape
        delays: list[float] = []
        sends: list[float] = []
        computed = 0.0
        source = torch.zeros(1, dtype=TOKEN_DTYPE) if is_last else torch.zeros(shape, dtype=_DTYPE)
        posted = deque(inbox.post(incoming) for _ in range(min(_AHEAD, messages)))
        received = 0

        def receive() -> None:
            nonlocal received
            asked = time.perf_counter()
            tensor = posted.popleft().wait()
            delays.append(time.perf_counter() - max(asked, read_stamp(tensor)))
            received += 1
            if received + len(posted) < messages:
                posted.append(inbox.post(incoming))

        started = time.perf_counter()
        for number in range(messages):
            if not is_first or number >= self._stages:
                receive()
            computed += self._compute(products)
            out = source.clone()
            now = time.perf_counter()
            write_stamp(out, now)
            outbox.send(out)
            sends.append(time.perf_counter() - now)
        outbox.flush()
        while received < messages:
            receive()
        return {
            "seconds": time.perf_counter() - started,
            "computed": computed,
            "delay_p50": percentile(delays, 0.5),
            "delay_p99": percentile(delays, 0.99),
            "send_p50": percentile(sends, 0.5),
        }

    def close(self) -> None:
        self._links.close()

    def _compute(self, products: int) -> float:
        """Seconds of processor time, so that waiting for a core does not count."""
        started = time.thread_time()
        for _ in range(products):
            torch.mm(self._a, self._a)
        return time.thread_time() - started


def write_stamp(tensor: Tensor, moment: float) -> None:
    """Put a moment of the system's steady clock, which its processes share, in front."""
    tensor.view(torch.uint8)[:_STAMP_BYTES].view(torch.float64)[0] = moment


def read_stamp(tensor: Tensor) -> float:
    return float(tensor.view(torch.uint8)[:_STAMP_BYTES].view(torch.float64)[0])
