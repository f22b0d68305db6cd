"""``AsyncPPInferEngine``: the engine for asyncio, its driver in a process of its own.

The same core as ``PPInferEngine``, which runs in the other process (``engine/host.py``); here are
the tokenizer, the checks of requests, and a queue for each of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ppinfer.config import EngineConfig
from ppinfer.engine.host_messages import Start
from ppinfer.engine.host_process import HostProcess
from ppinfer.engine.prompts import Limits, RequestFactory
from ppinfer.engine.report import EngineReport
from ppinfer.engine.source import ModelSource
from ppinfer.engine.state import EngineState, LiveState
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import PPInferError, StageError
from ppinfer.progress import Progress, no_progress
from ppinfer.request import Prompt, Request, RequestDelta
from ppinfer.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What stands: see the attributes of ``PPInferEngine``."""

    model: str
    pp_size: int
    dtype: str
    block_size: int
    limits: Limits
    notes: list[str]
    choices: list[str]
    stage_pids: list[int | None]

    @property
    def max_model_len(self) -> int:
        return self.limits.max_model_len

    @property
    def vocab_size(self) -> int:
        return self.limits.vocab_size


class AsyncPPInferEngine:
    """An engine whose results come by ``async for``; made by ``create``.

    All of it belongs to the event loop that made it. Use it as an asynchronous context manager, or
    call ``close()``; where neither happens, its processes end with this one.
    """

    def __init__(self, host: HostProcess, info: EngineInfo, tokenizer: Tokenizer | None) -> None:
        self._host = host
        self.info = info
        self.tokenizer = tokenizer
        self._requests = RequestFactory(tokenizer, info.limits)

    @classmethod
    async def create(
        cls,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> AsyncPPInferEngine:
        """Bring an engine up; the arguments are those of ``PPInferEngine``.

        Raises:
            PPInferError: what stands in the way; nothing is left running then.
        """
        config = EngineConfig.from_settings(settings)
        name = os.fspath(model)
        source = ModelSource(name, None, tokenizer, config.load_format)
        host = await HostProcess.spawn()
        try:
            where = None if tokenizer is None else os.fspath(tokenizer)
            host.send(Start(name, where, settings))
            started, own = await asyncio.gather(
                host.started(progress or no_progress), asyncio.to_thread(_tokenizer, source)
            )
        except BaseException:
            await host.close()
            raise
        finally:
            source.close()
        info = EngineInfo(
            model=name,
            pp_size=config.pp_size,
            dtype=started.dtype,
            block_size=config.block_size,
            limits=started.limits,
            notes=started.notes,
            choices=started.choices,
            stage_pids=started.stage_pids,
        )
        return cls(host, info, own)

    @property
    def host_pid(self) -> int:
        """Process id of the driver."""
        return self._host.pid

    @property
    def is_alive(self) -> bool:
        """Whether nothing has ended the engine, as far as is known here."""
        return self._host.failure is None

    def encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text that a prompt stands for (none for token ids), and its token ids.

        A template or a long text takes its time: call it in a thread.

        Raises:
            RequestError: it is none of the known kinds, or text without a tokenizer.
        """
        return self._requests.encode(prompt)

    def stream(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        streamed: bool = True,
    ) -> AsyncStream:
        """Begin a request; its deltas come by ``async for``, ``index`` always 0.

        Args:
            priority: of requests that wait, those with a lower one run first.
            salt: only requests with the same one share cached prefixes.
            streamed: false where nobody reads before the end, so that prompts beside it need not
                be held back for it.

        Raises:
            RequestError: the prompt cannot be served.
            EngineClosedError: the engine was closed.
            StageError: a stage has failed.
        """
        self._host.check()
        request = self._requests.make(prompt_token_ids, params, priority, salt, streamed)
        return AsyncStream(self._host, request)

    async def report(self) -> EngineReport:
        """Figures of the run under way, or else of the last one; every stage is asked.

        Raises:
            StageError: a stage failed before it could answer.
            EngineClosedError: the engine was closed.
        """
        return await self._host.ask()

    async def state(self) -> EngineState:
        """What is at work now, and counters and latencies since the engine stands; see
        ``PPInferEngine.state``. It comes within a second, whatever stages do.

        Raises:
            PPInferError: what ended the engine.
        """
        return (await self._host.ask_state(watch=False)).state

    async def live(self) -> LiveState:
        """The state, and every span since the last call; the first one makes stages record. Where
        no call comes for 5 seconds, or at ``look_away``, they record no longer.

        Raises:
            PPInferError: what ended the engine.
        """
        return await self._host.ask_state(watch=True)

    def look_away(self) -> None:
        """Nobody watches any more; takes no time."""
        self._host.look_away()

    async def check(self, timeout: float) -> None:
        """Make sure that every stage answers.

        Raises:
            StageError: one failed, or they did not answer within ``timeout`` seconds.
            EngineClosedError: the engine was closed.
        """
        try:
            await asyncio.wait_for(self.report(), timeout)
        except TimeoutError:
            raise StageError(f"The stages did not answer within {timeout:g} s.") from None

    async def close(self) -> None:
        """End every process; requests under way end with ``EngineClosedError``."""
        await self._host.close()

    async def __aenter__(self) -> AsyncPPInferEngine:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class AsyncStream(AsyncIterator[RequestDelta]):
    """Deltas of one request. ``aclose`` aborts what is unfinished; so does being dropped, or an
    ``async with`` that is left. ``seq_id`` is what the engine's state calls it."""

    def __init__(self, host: HostProcess, request: Request) -> None:
        self.prompt_token_ids = list(request.prompt_token_ids)
        self._host = host
        self.seq_id = request.seq_id
        self._arrived: asyncio.Queue[RequestDelta | PPInferError] = asyncio.Queue()
        self._is_finished = False
        host.submit(request, self._arrived)

    async def __anext__(self) -> RequestDelta:
        """Raises what ended the request, where it did not end by itself."""
        if self._is_finished:
            raise StopAsyncIteration
        try:
            item = await self._arrived.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(item, PPInferError):
            self._is_finished = True
            raise item
        self._is_finished = item.finish_reason is not None
        return msgspec.structs.replace(item, index=0)

    def cancel(self) -> None:
        """Abort what is unfinished; takes no time."""
        if not self._is_finished:
            self._is_finished = True
            self._host.abort(self.seq_id)

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


def _tokenizer(source: ModelSource) -> Tokenizer | None:
    source.open()
    return source.tokenizer()
