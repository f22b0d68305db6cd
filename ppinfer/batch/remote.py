"""Answers of a server, this program's or another. Needs aiohttp."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

import aiohttp

from ppinfer.batch.lines import Asked, Response, one_line
from ppinfer.client.http import new_session
from ppinfer.errors import ServerError

_AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that say: not now."""
_CLOSED = frozenset({401, 403})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class RemoteAnswerer:
    """Asks a server, and again where it is busy or away for a while.

    Args:
        url: the server's root, without ``/v1``.
        timeout: seconds that one answer may take.
        patience: seconds after which an answer that does not come, however often it is asked for,
            ends the run.
    """

    def __init__(
        self, url: str, api_key: str | None, timeout: float, patience: float = 300.0
    ) -> None:
        self._url, self._patience = url, patience
        self._session = new_session(api_key, aiohttp.ClientTimeout(total=timeout))

    async def __aenter__(self) -> RemoteAnswerer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def answer(self, asked: Asked) -> Response:
        """Raises ``ServerError`` where the server is away for too long, or wants another key."""
        failing_since: float | None = None
        pause = _FIRST_PAUSE
        while True:
            told = None
            try:
                response, told = await self._ask(asked)
                if response.status_code in _CLOSED:
                    raise ServerError(
                        f"{self._url} wants a key (status {response.status_code}): give --api-key "
                        "or OPENAI_API_KEY."
                    )
                if response.status_code not in _AGAIN:
                    return response
                why = f"it answers with status {response.status_code}"
            except TimeoutError:
                why = "an answer took too long"
            except (aiohttp.ClientError, OSError) as error:
                why = str(error) or type(error).__name__
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since > self._patience:
                raise ServerError(f"{self._url} gave no answer for {self._patience:g} s: {why}.")
            await asyncio.sleep(min(told or pause, _LONGEST_PAUSE))
            pause *= 2

    async def _ask(self, asked: Asked) -> tuple[Response, float | None]:
        """The answer, and for how many seconds not to ask again, if it says so."""
        async with self._session.post(self._url + asked.url, data=asked.body) as answer:
            body = await answer.read()
            response = Response(
                answer.status, answer.headers.get("x-request-id", ""), one_line(body)
            )
            told = answer.headers.get("retry-after", "")
            return response, float(told) if told.isdigit() else None
