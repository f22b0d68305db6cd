"""The owner's side of the process of an asynchronous engine's driver (``host.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from ppinfer.comm.control import LENGTH_BYTES, ChannelClosedError, frame_length, framed
from ppinfer.engine.host_messages import (
    Abort,
    Answer,
    Ask,
    AskState,
    Deltas,
    Failure,
    LookAway,
    Progress,
    Started,
    StateAnswer,
    Stop,
    Submit,
    ToHost,
    decode_from_host,
    encode,
)
from ppinfer.engine.report import EngineReport
from ppinfer.engine.state import LiveState
from ppinfer.errors import EngineClosedError, PPInferError, StageError
from ppinfer.progress import Progress as ReportProgress
from ppinfer.request import Request, RequestDelta

# -P: what lies in the current folder is not imported in place of a library.
_COMMAND = (sys.executable, "-P", "-m", "ppinfer.engine.host")
_CLOSE_SECONDS = 15.0
"""More than an engine takes to end its stages by force."""
_FAILED_SECONDS = 1.0
"""For the end of a process that said why its engine cannot stand."""


class HostProcess:
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
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._num_asked = 0
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls) -> HostProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [*_COMMAND, "--fd", str(theirs.fileno())],
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
                request.streamed,
            )
        )

    def abort(self, seq_id: int) -> None:
        if self._streams.pop(seq_id, None) is not None and self.failure is None:
            self.send(Abort([seq_id]))

    async def ask(self) -> EngineReport:
        found: EngineReport = await self._question(Ask)
        return found

    async def ask_state(self, watch: bool) -> LiveState:
        found: LiveState = await self._question(lambda number: AskState(number, watch))
        return found

    def look_away(self) -> None:
        self.send(LookAway())

    async def _question(self, message: Callable[[int], ToHost]) -> Any:
        """``message`` makes the question of its number."""
        self.check()
        self._num_asked += 1
        number = self._num_asked
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(message(number))
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    # ------------------------------------------------------------ messages

    def send(self, message: ToHost) -> None:
        """Nothing waits here: the other side reads whatever comes at once."""
        data = encode(message)
        with contextlib.suppress(OSError, RuntimeError):  # it is gone, as ``_read`` finds out
            self._writer.write(framed(data))

    async def _receive(self) -> Any:
        """The next message; raises ``EngineClosedError`` or ``StageError`` at the end."""
        try:
            length = frame_length(await self._reader.readexactly(LENGTH_BYTES))
            return decode_from_host(await self._reader.readexactly(length))
        except ChannelClosedError:
            raise StageError("The engine's process sent what is no message.") from None
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
                    self._answer(message.number, message.report)
                elif isinstance(message, StateAnswer):
                    self._answer(message.number, message.live)
                elif isinstance(message, Failure):
                    self._fail(message.exception())
        except PPInferError as error:
            self._fail(error)

    def _answer(self, number: int, found: EngineReport | LiveState) -> None:
        future = self._asked.get(number)
        if future is not None and not future.done():
            future.set_result(found)

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
