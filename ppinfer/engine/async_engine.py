"""``AsyncPPInferEngine``: the engine for asyncio, its driver in a process of its own.

The same core as ``PPInferEngine``, which runs in the other process (``engine/host.py``); here are
the tokenizer, the checks of requests, and a queue for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ppinfer.comm.control import MAX_FRAME
from ppinfer.config import EngineConfig
from ppinfer.engine.host_messages import (
    Abort,
    Answer,
    Ask,
    Deltas,
    Failure,
    Progress,
    Start,
    Started,
    Stop,
    Submit,
    ToHost,
    decode_from_host,
    encode,
)
from ppinfer.engine.prompts import Limits, RequestFactory
from ppinfer.engine.report import EngineReport
from ppinfer.engine.source import ModelSource
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import EngineClosedError, PPInferError, StageError
from ppinfer.request import Prompt, Request, RequestDelta
from ppinfer.sampling import SamplingParams

ReportProgress: TypeAlias = Callable[[str, float, float], None]

_LENGTH = struct.Struct("<I")
# -P: what lies in the current folder is not imported in place of a library.
_COMMAND = (sys.executable, "-P", "-m", "ppinfer.engine.host")
_CLOSE_SECONDS = 15.0
"""More than an engine takes to end its stages by force."""
_FAILED_SECONDS = 1.0
"""For the end of a process that said why its engine cannot stand."""


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

    def __init__(self, host: _Host, info: EngineInfo, tokenizer: Tokenizer | None) -> None:
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
        progress: ReportProgress | None = None,
        **settings: Any,
    ) -> AsyncPPInferEngine:
        """Bring an engine up; the arguments are those of ``PPInferEngine``.

        Raises:
            PPInferError: what stands in the way; nothing is left running then.
        """
        config = EngineConfig.from_settings(settings)
        name = os.fspath(model)
        source = ModelSource(name, None, tokenizer, config.load_format)
        host = await _Host.spawn()
        try:
            where = None if tokenizer is None else os.fspath(tokenizer)
            host.send(Start(name, where, settings))
            started, own = await asyncio.gather(
                host.started(progress or _no_progress), asyncio.to_thread(_tokenizer, source)
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
    ) -> AsyncStream:
        """Begin a request; its deltas come by ``async for``, ``index`` always 0.

        Args:
            priority: of requests that wait, those with a lower one run first.
            salt: only requests with the same one share cached prefixes.

        Raises:
            RequestError: the prompt cannot be served.
            EngineClosedError: the engine was closed.
            StageError: a stage has failed.
        """
        self._host.check()
        request = self._requests.make(prompt_token_ids, params, priority, salt)
        return AsyncStream(self._host, request)

    async def report(self) -> EngineReport:
        """Figures of the run under way, or else of the last one; every stage is asked.

        Raises:
            StageError: a stage failed before it could answer.
            EngineClosedError: the engine was closed.
        """
        return await self._host.ask()

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
    ``async with`` that is left."""

    def __init__(self, host: _Host, request: Request) -> None:
        self.prompt_token_ids = list(request.prompt_token_ids)
        self._host = host
        self._seq_id = request.seq_id
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
        return RequestDelta(0, item.text, item.token_ids, item.finish_reason, item.logprobs)

    def cancel(self) -> None:
        """Abort what is unfinished; takes no time."""
        if not self._is_finished:
            self._is_finished = True
            self._host.abort(self._seq_id)

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()


class _Host:
    """The other process, and who waits for what of it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.failure: PPInferError | None = None
        self._process, self._reader, self._writer = process, reader, writer
        self._streams: dict[int, asyncio.Queue[RequestDelta | PPInferError]] = {}
        self._asked: dict[int, asyncio.Future[EngineReport]] = {}
        self._num_asked = 0
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls) -> _Host:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    # -P: what lies in the current folder is not imported in place of a library.
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "ppinfer.engine.host",
                        "--fd",
                        str(theirs.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def started(self, progress: ReportProgress) -> Started:
        """Wait for the engine to stand; from then on whatever comes is handed on."""
        while True:
            message = await self._receive()
            if isinstance(message, Progress):
                progress(message.event, message.done, message.total)
            elif isinstance(message, Failure):
                raise message.exception()
            elif isinstance(message, Started):
                self._task = asyncio.create_task(self._read())
                return message

    # ------------------------------------------------------------ requests

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def submit(self, request: Request, arrived: asyncio.Queue[RequestDelta | PPInferError]) -> None:
        self._streams[request.seq_id] = arrived
        self.send(
            Submit(
                request.seq_id,
                request.prompt_token_ids,
                request.params,
                tuple(request.stop_ids),
                request.priority,
                request.salt,
            )
        )

    def abort(self, seq_id: int) -> None:
        if self._streams.pop(seq_id, None) is not None and self.failure is None:
            self.send(Abort([seq_id]))

    async def ask(self) -> EngineReport:
        self.check()
        self._num_asked += 1
        number = self._num_asked
        future: asyncio.Future[EngineReport] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self.send(Ask(number))
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    # ------------------------------------------------------------ messages

    def send(self, message: ToHost) -> None:
        """Nothing waits here: the other side reads whatever comes at once."""
        data = encode(message)
        with contextlib.suppress(OSError, RuntimeError):  # it is gone, as ``_read`` finds out
            self._writer.write(_LENGTH.pack(len(data)) + data)

    async def _receive(self) -> Any:
        """The next message; raises ``EngineClosedError`` or ``StageError`` at the end."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME:
                raise StageError("The engine's process sent what is no message.")
            return decode_from_host(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            if self._closing is not None:
                raise EngineClosedError("The engine was closed.") from None
            raise StageError("The engine's own process died.") from None

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                if isinstance(message, Deltas):
                    for delta in message.deltas:
                        self._hand_on(delta.index, delta, delta.finish_reason is not None)
                    for failure in message.failures:
                        self._hand_on(failure.seq_id, failure.exception(), True)
                elif isinstance(message, Answer):
                    future = self._asked.get(message.number)
                    if future is not None and not future.done():
                        future.set_result(message.report)
                elif isinstance(message, Failure):
                    self._fail(message.exception())
        except PPInferError as error:
            self._fail(error)

    def _hand_on(self, seq_id: int, item: RequestDelta | PPInferError, is_last: bool) -> None:
        arrived = self._streams.get(seq_id)
        if arrived is not None:  # else it was aborted meanwhile
            arrived.put_nowait(item)
            if is_last:
                del self._streams[seq_id]

    def _fail(self, error: PPInferError) -> None:
        """Nothing more comes: tell whoever waits."""
        self.failure = self.failure or error
        for arrived in self._streams.values():
            arrived.put_nowait(self.failure)
        self._streams.clear()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(self.failure)

    # ------------------------------------------------------------ end

    async def close(self) -> None:
        """May be called again, and by several tasks at once."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.send(Stop())
        # Before the engine stands nobody reads that; its stages end with the process.
        limit = _CLOSE_SECONDS if self._task is not None else _FAILED_SECONDS
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait), limit)
        except TimeoutError:
            self._process.kill()
        finally:
            if self._task is not None:
                await self._task
            self._fail(EngineClosedError("This engine is closed; make a new one."))
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._process.wait()


def _tokenizer(source: ModelSource) -> Tokenizer | None:
    source.open()
    return source.tokenizer()


def _no_progress(event: str, done: float, total: float) -> None:
    pass
