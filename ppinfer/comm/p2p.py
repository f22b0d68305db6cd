"""Hidden states by point-to-point operations of a two-rank group."""

from __future__ import annotations

from typing import Any

import torch

from ppinfer.comm.group import first_line
from ppinfer.comm.transport import PendingSends, Work
from ppinfer.errors import StageError

_TAGS = 1 << 15
"""Tags number the messages of a link, so that receives posted ahead match in order."""


class GroupReceive:
    """A receive of one tensor through a process group; its failure names the sending stage."""

    def __init__(self, work: Work, tensor: torch.Tensor, source: int) -> None:
        self._work = work
        self._tensor = tensor
        self._source = source

    def wait(self) -> torch.Tensor:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise nothing_came(self._source, error) from error
        return self._tensor


class P2PInbox:
    def __init__(self, group: Any, source: int, dtype: torch.dtype, device: torch.device) -> None:
        self._group = group
        self._source = source
        self._dtype = dtype
        self._device = device
        self._count = 0

    def post(self, shape: tuple[int, ...]) -> GroupReceive:
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        try:
            work = self._receive(tensor)
        except RuntimeError as error:
            raise nothing_came(self._source, error) from error
        self._count += 1
        return GroupReceive(work, tensor, self._source)

    def _receive(self, tensor: torch.Tensor) -> Work:
        work: Work = self._group.recv([tensor], 0, self._count % _TAGS)
        return work

    def close(self) -> None:
        self._group = None


class P2POutbox:
    def __init__(self, group: Any, target: int, depth: int) -> None:
        self._group = group
        self._target = target
        self._pending = PendingSends(depth)
        self._count = 0

    def send(self, tensor: torch.Tensor) -> None:
        try:
            self._pending.add(self._send(tensor), tensor)
        except RuntimeError as error:
            raise nothing_taken(self._target, error) from error
        self._count += 1

    def _send(self, tensor: torch.Tensor) -> Work:
        work: Work = self._group.send([tensor], 1, self._count % _TAGS)
        return work

    def flush(self) -> None:
        try:
            self._pending.drain()
        except RuntimeError as error:
            raise nothing_taken(self._target, error) from error

    def close(self) -> None:
        self._group = None


def nothing_came(stage: int, error: RuntimeError) -> StageError:
    return StageError(f"Nothing more came from stage {stage}: {first_line(error)}", stage=stage)


def nothing_taken(stage: int, error: RuntimeError) -> StageError:
    return StageError(f"Stage {stage} took nothing more: {first_line(error)}", stage=stage)
