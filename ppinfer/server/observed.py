"""The engine's state as the server knows it: fresh where it can be had, else the last one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from ppinfer.engine.state import EngineState, LiveState
from ppinfer.errors import PPInferError
from ppinfer.server.backend import Engine

_AnswerT = TypeVar("_AnswerT")

PATIENCE = 2.0
"""Seconds for the driver's process to answer; it needs half of one where a stage hangs."""


class Observed:
    """
    Attributes:
        is_fresh: whether the engine answered when it was last asked.
    """

    def __init__(self) -> None:
        self.is_fresh = False
        self._state = EngineState()
        self._at = time.monotonic()

    @property
    def state(self) -> EngineState:
        """As it was heard last; only the stages' silence goes on."""
        since = time.monotonic() - self._at
        stages = [
            msgspec.structs.replace(stage, heartbeat_age=stage.heartbeat_age + since)
            for stage in self._state.stages
        ]
        return msgspec.structs.replace(self._state, stages=stages)

    async def refresh(self, engine: Engine | None) -> EngineState:
        """Ask the engine, if there is one; what is known then."""
        if (found := await self._ask(None if engine is None else engine.state)) is not None:
            self._hear(found)
        return self.state

    async def look(self, engine: Engine | None) -> LiveState | None:
        """Likewise, with what stages did since the last look; ``None`` if there is no answer."""
        if (found := await self._ask(None if engine is None else engine.live)) is not None:
            self._hear(found.state)
        return found

    async def _ask(self, ask: Callable[[], Awaitable[_AnswerT]] | None) -> _AnswerT | None:
        self.is_fresh = False
        if ask is None:
            return None
        try:
            async with asyncio.timeout(PATIENCE):  # wait_for may swallow a cancellation
                return await ask()
        except (PPInferError, TimeoutError):
            return None

    def _hear(self, state: EngineState) -> None:
        self.is_fresh = True
        self._state, self._at = state, time.monotonic()
