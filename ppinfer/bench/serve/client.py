"""The HTTP side: one server, one endpoint, streamed answers. Needs aiohttp."""

from __future__ import annotations

import resource
import ssl
import time
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from ppinfer.bench.serve.answer import AnswerError, AnswerReader, reason_in
from ppinfer.bench.serve.records import RequestRecord
from ppinfer.bench.serve.target import Target
from ppinfer.errors import ServerError

_KEEP_ALIVE = 2.0
"""Seconds an idle connection is kept: less than servers do, lest one closes it as it is used."""
_SHORT_TIMEOUT = 30.0
_SPARE_FILES = 64
_LONGEST_BODY = 4 * 2**20


class Client:
    """Connections to one server, for as long as it is entered."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        # Without a limit of their own, more connections than files may be open would all fail.
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_in_flight = max(files - _SPARE_FILES, 1) if files > 0 else 2**20
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            headers=headers,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(self, target: Target, body: bytes, record: RequestRecord, start: float) -> None:
        """Send a request and take its answer into ``record``; whatever fails becomes its status.

        Args:
            start: the ``perf_counter`` that the record's times count from.
        """
        reader = AnswerReader(record)
        record.sent = time.perf_counter() - start
        try:
            async with self._session.post(
                target.url + target.path, data=body, timeout=self._timeout
            ) as response:
                if response.status != 200:
                    text = await _whole(response)
                    raise AnswerError(f"HTTP {response.status}", reason_in(text))
                if response.content_type != "text/event-stream":
                    raise AnswerError("no stream", f"an answer of type {response.content_type}")
                async for received in response.content.iter_any():
                    reader.feed(received, time.perf_counter() - start)
            reader.close()
        except AnswerError as problem:
            record.status, record.why = problem.args
        except TimeoutError:
            record.status, record.why = "timeout", f"no end after {self._timeout.total:g} s"
        except aiohttp.ClientConnectorError as error:
            record.status, record.why = "no connection", str(error)
        except (aiohttp.ClientError, OSError) as error:
            record.status, record.why = "disconnected", str(error) or type(error).__name__
        record.ended = time.perf_counter() - start

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
            reason = error.os_error.strerror or str(error.os_error)
            if isinstance(error.os_error, ssl.SSLError):
                reason = "no TLS there that can be trusted"
            raise ServerError(
                f"Nobody answers at {self._url} ({reason}): is the server running?"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(f"{self._url} does not speak HTTP as expected: {error}.") from error


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
