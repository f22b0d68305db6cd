"""A client's connection: uvicorn's, with bounds on what a client may send and how slowly it may
send or read."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ppinfer.server.errors import ApiError

MAX_HEADERS = 100
MAX_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers; also of what may come between two parts of its body."""

RECEIVE_SECONDS = 60.0
"""A request must have come by then, from its first byte or from when the client connected."""

STALL_SECONDS = 30.0
"""A client that reads nothing for so long, while there is something to read, is gone."""

LAST_MOMENT_SECONDS = 0.2
"""For a request on a connection that was accepted just before the listener closed."""


class Connection(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""  # which uvicorn sets with the first request
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._head_bytes = self._num_headers = 0
        self._unframed_bytes = 0  # since something of use came
        self._too_much = False

    # ------------------------------------------------------------ deadlines

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        app: Any = self.app
        if app.service.draining:  # perhaps the others have been told already
            self.loop.call_later(LAST_MOMENT_SECONDS, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_deadline")
        self._cancel("_stall")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel("_stall")
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel("_stall")
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:  # the rest of a request that was answered early
            self._unset_keepalive_if_required()

    def _await_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(RECEIVE_SECONDS, self._late)

    def _late(self) -> None:
        if self.url and not self._is_answering():
            self._refuse(ApiError(408, "The request took too long to arrive."))
        else:
            self.transport.close()

    def _cancel(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    # ------------------------------------------------------------ sizes

    def data_received(self, data: bytes) -> None:
        self._unframed_bytes += len(data)
        if self._unframed_bytes > MAX_HEAD_BYTES + len(data):
            self._too_much = True
            self.send_400_response("")
            return
        if self.cycle is None or self.cycle.response_complete:
            self._await_request()
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._num_headers = 0
        self._await_request()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._num_headers += 1
        self._count(len(name) + len(value))

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unframed_bytes = 0
        self._cancel("_deadline")
        answered = self.cycle.response_complete
        super().on_message_complete()
        if answered:
            self.cycle.more_body = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _count(self, size: int) -> None:
        """Raising ends the parsing of this connection, by ``send_400_response``."""
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS:
            self._too_much = True
            raise ValueError("too many headers")

    # ------------------------------------------------------------ refusals

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up, in this server's shape."""
        if self._too_much:
            self._refuse(ApiError(431, "The request's headers are too many or too large."))
        else:
            self._refuse(ApiError(400, "This is not valid HTTP."))

    def _refuse(self, error: ApiError) -> None:
        if not self.transport.is_closing() and not self._is_answering():
            body = error.body()
            head = (
                f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nx-request-id: req_{secrets.token_hex(12)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_answering(self) -> bool:
        """Whether an answer has begun, into which nothing else must be written."""
        cycle = self.cycle
        return cycle is not None and cycle.response_started and not cycle.response_complete
