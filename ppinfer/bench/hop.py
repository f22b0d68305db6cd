"""A stage that only hops: takes a tensor, computes for a while, hands it on.

The stages form the engine's ring: at most one message a stage is under way, since stage 0 sends the
next one only when the last stage has said through a pipe that one is done. Messages carry the
moment at which they were sent, so what a receiver waited for can be told apart from what the
transport took: the *delay* of a hop is the time from when both the message was sent and the
receiver asked for it until the receiver had it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor

from ppinfer.bench.stats import percentile
from ppinfer.comm.links import Links, open_links
from ppinfer.comm.stage_manager import PipelineStageManager

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

    def open(self, stage: int, stages: int, comm: str, store: str, timeout: float) -> None:
        """Join the neighbours by one transport."""
        self._stage, self._stages = stage, stages
        self._links = open_links(
            PipelineStageManager(stage, stages, stage, stage + 1),
            comm=comm,
            store=store,
            generation=0,
            address="127.0.0.1",
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            send_depth=stages,
            timeout=timeout,
        )

    def hop(
        self, num_bytes: int, messages: int, products: int, done_read: int, done_write: int
    ) -> dict[str, Any]:
        """Pass ``messages`` on; seconds of the whole, and what each message cost this stage."""
        shape = (max(num_bytes, 2 * _STAMP_BYTES) // 2,)
        inbox, outbox = self._links.inbox, self._links.outbox
        delays: list[float] = []
        sends: list[float] = []
        computed = 0.0
        source = torch.zeros(shape, dtype=torch.bfloat16)
        posted = [inbox.post(shape) for _ in range(min(_AHEAD, messages))] if inbox else []
        started = time.perf_counter()
        for number in range(messages):
            if inbox is not None:
                asked = time.perf_counter()
                tensor = posted.pop(0).wait()
                now = time.perf_counter()
                delays.append(now - max(asked, read_stamp(tensor)))
                if number + _AHEAD < messages:
                    posted.append(inbox.post(shape))
            elif number >= self._stages:
                os.read(done_read, 1)
            computed += self._compute(products)
            if outbox is None:
                os.write(done_write, b"d")
                continue
            out = source.clone()
            now = time.perf_counter()
            write_stamp(out, now)
            outbox.send(out)
            sends.append(time.perf_counter() - now)
        if outbox is not None:
            outbox.flush()
        if inbox is None:
            for _ in range(min(self._stages, messages)):
                os.read(done_read, 1)
        return {
            "seconds": time.perf_counter() - started,
            "computed": computed,
            "delay_p50": percentile(delays, 0.5) if delays else None,
            "delay_p99": percentile(delays, 0.99) if delays else None,
            "send_p50": percentile(sends, 0.5) if sends else None,
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
