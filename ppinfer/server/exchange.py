"""One HTTP request and its answer, over ASGI."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from ppinfer.server.errors import ApiError, Headers

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
_MAX_REQUEST_ID = 128


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer any more."""


class Exchange:
    """
    Attributes:
        headers: by name in lower case; of a header that comes twice, the last.
        request_id: the client's own where it gave a sane one; also in the answer.
        started: whether the answer has begun, so that its status can no longer change.
        complete: whether all of it was handed to the connection.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.started = self.complete = False
        self._receive, self._send = receive, send
        self._has_body = asyncio.Event()
        self._as_events = False

    async def body(self, limit: int) -> bytes:
        """All of the request's body.

        Raises:
            ApiError: 415 if it is not called JSON, 413 if it is longer than ``limit`` bytes.
            ClientGoneError: it does not come to its end.
        """
        kind = self.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "The content type must be application/json.")
        told = self.headers.get(b"content-length", b"0")
        if not told.isdigit() or int(told[:20]) > limit:
            raise _too_large(limit)
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message["body"])
            size += len(message["body"])
            if size > limit:
                raise _too_large(limit)
            more = message["more_body"]
        self._has_body.set()
        return b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client has closed its connection, or the answer is complete.

        A request whose body nobody reads is not watched: its answer takes no time.
        """
        await self._has_body.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # ------------------------------------------------------------ a whole answer

    async def json(self, value: Any, status: int = 200) -> None:
        await self.answer(msgspec.json.encode(value), [_JSON], status)

    async def error(self, error: ApiError) -> None:
        """As the whole answer, or as the last event of one that has begun."""
        if not self.started:
            await self.answer(error.body(), [_JSON, *error.headers], error.status)
        elif self._as_events and not self.complete:
            await self.event(error.body())
            await self._end()

    async def answer(self, body: bytes, headers: Headers, status: int = 200) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [length, *headers])
        self.complete = True
        await self._send({"type": "http.response.body", "body": body})

    # ------------------------------------------------------------ server-sent events

    async def start_events(self) -> None:
        self._as_events = True
        self._has_body.set()  # which was read, or there is none; from now on ``gone`` watches
        await self._start(200, _EVENTS)

    async def event(self, data: bytes) -> None:
        """Waits while the client is slow to read."""
        await self._send(
            {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}
        )

    async def end_events(self) -> None:
        await self.event(b"[DONE]")
        await self._end()

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        everywhere = [
            (b"x-request-id", self.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *everywhere]}
        )

    async def _end(self) -> None:
        self.complete = True
        await self._send({"type": "http.response.body", "body": b""})


def _request_id(given: bytes | None) -> str:
    if given and len(given) <= _MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if all(char.isascii() and (char.isalnum() or char in "-_.:") for char in text):
            return text
    return f"req_{secrets.token_hex(12)}"


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body must not be longer than {limit:,} bytes.")
