"""Requests that are being answered: what is known of each, and how one is ended from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ppinfer.engine.state import SequencePhase, SequenceState
from ppinfer.server.errors import ApiError

if TYPE_CHECKING:
    from ppinfer.server.stream import Answers

_FURTHEST_LAST: tuple[SequencePhase, ...] = ("waiting", "prefill", "decode")


class RequestView(msgspec.Struct):
    """One request for people. Of several answers, ``phase`` is that of the one furthest on."""

    id: str
    phase: SequencePhase
    age: float  # seconds
    prompt_tokens: int
    new_tokens: int
    answers: int


@dataclass(slots=True, eq=False)
class InFlight:
    """
    Attributes:
        answers: what it generates, once that has begun; other requests have none.
        ended_by: why it was ended from outside.
    """

    id: str
    salt: str
    task: asyncio.Task[None]
    answers: Answers | None = None
    ended_by: ApiError | None = None
    since: float = field(default_factory=time.monotonic)

    def end(self, why: ApiError) -> None:
        self.ended_by = why
        self.task.cancel()

    def view(self, sequences: Mapping[int, SequenceState]) -> RequestView:
        assert self.answers is not None
        phases = [sequences[one].phase for one in self.answers.seq_ids if one in sequences]
        return RequestView(
            id=self.id,
            phase=max(phases, key=_FURTHEST_LAST.index, default="waiting"),
            age=time.monotonic() - self.since,
            prompt_tokens=self.answers.prompt_tokens,
            new_tokens=self.answers.new_tokens,
            answers=len(self.answers.seq_ids),
        )


class Requests:
    """All of a server. Whoever has one key of several sees and ends only what came with it."""

    def __init__(self) -> None:
        self._found: dict[asyncio.Task[None], InFlight] = {}

    def begin(self, request_id: str, salt: str, task: asyncio.Task[None]) -> InFlight:
        one = self._found[task] = InFlight(request_id, salt, task)
        return one

    def end(self, one: InFlight) -> None:
        del self._found[one.task]

    def __len__(self) -> int:
        return len(self._found)

    def generates(self, answers: Answers) -> None:
        """To be called by the task that answers a request: it generates ``answers``."""
        task = asyncio.current_task()
        if task is not None and task in self._found:
            self._found[task].answers = answers

    @property
    def generating(self) -> list[InFlight]:
        return [one for one in self._found.values() if one.answers is not None]

    def views(self, salt: str, sequences: Sequence[SequenceState]) -> list[RequestView]:
        by_id = {sequence.seq_id: sequence for sequence in sequences}
        return [one.view(by_id) for one in self.generating if one.salt == salt]

    def cancel(self, request_id: str, salt: str) -> int:
        """End those of this id; how many there were. An id may be the client's own choice."""
        found = [one for one in self.generating if (one.id, one.salt) == (request_id, salt)]
        for one in found:
            one.end(cancelled())
        return len(found)

    def end_all(self, why: ApiError) -> None:
        for one in self._found.values():
            one.end(why)


def cancelled() -> ApiError:
    """Not a status that clients try again after."""
    return ApiError(499, "The request was cancelled.", code="cancelled")
