"""Connections to one server. Needs aiohttp."""

from __future__ import annotations

import resource
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from ppinfer.client.address import check_key
from ppinfer.client.chunks import AnswerError, reason_in
from ppinfer.errors import ServerError

_KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: less than servers do, lest one closes it as it is used."""
_SHORT_TIMEOUT = 30.0
_SILENCE = 600.0
_SPARE_FILES = 64
_LONGEST_BODY = 4 * 2**20


def new_session(api_key: str | None, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """Any number of connections. Raises ``ConfigError`` where no request could carry the key."""
    check_key(api_key)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)


class Client:
    """Connections to one server, for as long as it is entered.

    Args:
        url: the server's root, without ``/v1``.
        timeout: seconds that a streamed answer may take; ``None`` lets it go on for as long as it
            is never silent for ten minutes.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float | None) -> None:
        self._url = url
        silence = _SILENCE if timeout is None else None
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_read=silence)
        # Without a limit of their own, more connections than files may be open would all fail.
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_in_flight = max(files - _SPARE_FILES, 1) if files > 0 else 2**20
        self._session = new_session(api_key, self._timeout)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def post_stream(self, path: str, body: bytes, take: Callable[[bytes], None]) -> None:
        """Ask for a stream of events, and hand its bytes to ``take`` as they come.

        Raises:
            AnswerError: nobody answers, or not with such a stream to its end.
        """
        with self._told():
            response = await self._session.post(self._url + path, data=body, timeout=self._timeout)
        async with response:
            if response.status != 200:
                with self._told():
                    text = await _whole(response)
                raise AnswerError(f"HTTP {response.status}", reason_in(text))
            if response.content_type != "text/event-stream":
                raise AnswerError("no stream", f"an answer of type {response.content_type}")
            while True:
                with self._told():
                    received = await response.content.readany()
                if not received:
                    return
                take(received)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong on the way becomes an ``AnswerError``."""
        try:
            yield
        except TimeoutError as error:
            total = self._timeout.total
            why = (
                f"nothing came for {_SILENCE:g} s" if total is None else f"no end after {total:g} s"
            )
            raise AnswerError("timeout", why) from error
        except aiohttp.ClientConnectorError as error:
            raise AnswerError("no connection", _reason(error)) from error
        except aiohttp.ClientPayloadError as error:  # its own words are of transfer encodings
            raise AnswerError("disconnected", "the connection was closed too soon") from error
        except (aiohttp.ClientError, OSError) as error:
            raise AnswerError("disconnected", str(error) or type(error).__name__) from error

    async def models(self) -> list[str]:
        """Names of the models that are served; none where the server does not say.

        Raises:
            ServerError: nobody answers there, or not to us.
        """
        status, body = await self._exchange("GET", "/v1/models", None)
        if status in (401, 403):
            raise ServerError(
                f"{self._url} wants a key ({reason_in(body)}): give --api-key or OPENAI_API_KEY."
            )
        try:
            found = msgspec.json.decode(body, type=_Models) if status == 200 else _Models()
        except msgspec.DecodeError:
            return []
        return [model.id for model in found.data]

    async def count_tokens(self, fields: dict[str, Any]) -> int | None:
        """What ``/tokenize`` makes of these fields; ``None`` where it does not."""
        try:
            status, body = await self._exchange("POST", "/tokenize", msgspec.json.encode(fields))
            found = msgspec.json.decode(body, type=_Tokens) if status == 200 else _Tokens()
        except (ServerError, msgspec.DecodeError):
            return None
        return len(found.tokens) or found.count

    async def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and body. Raises ``ServerError`` where there is no answer."""
        timeout = aiohttp.ClientTimeout(total=_SHORT_TIMEOUT)
        try:
            async with self._session.request(
                method, self._url + path, data=body, timeout=timeout
            ) as response:
                return response.status, await _whole(response)
        except TimeoutError as error:
            raise ServerError(f"{self._url} did not answer in {_SHORT_TIMEOUT:g} s.") from error
        except aiohttp.ClientConnectorError as error:
            raise ServerError(
                f"Nobody answers at {self._url} ({_reason(error)}): is the server running?"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(f"{self._url} does not speak HTTP as expected: {error}.") from error


def _reason(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error.os_error, ssl.SSLError):
        return "no TLS there that can be trusted"
    return error.os_error.strerror or str(error.os_error)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body, but of a very long one no more than its beginning."""
    body = bytearray()
    async for received in response.content.iter_any():
        body += received
        if len(body) > _LONGEST_BODY:
            break
    return bytes(body)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Tokens(msgspec.Struct):
    tokens: list[msgspec.Raw] = []
    count: int | None = None
