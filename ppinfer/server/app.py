"""The ASGI application: which path goes where, who may ask, and how every request ends."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from ppinfer.server import live, metrics, page, plain, requests
from ppinfer.server.chat import chat_completions
from ppinfer.server.completions import completions
from ppinfer.server.errors import ApiError, as_api_error, shutting_down
from ppinfer.server.exchange import ClientGoneError, Exchange, Receive, Scope, Send
from ppinfer.server.in_flight import InFlight
from ppinfer.server.service import Service

Endpoint: TypeAlias = Callable[[Service, Exchange, str], Coroutine[Any, Any, None]]
"""Answers an exchange; the string names the tenant, for what is cached between requests."""

ROUTES: dict[str, dict[str, Endpoint]] = {
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/models": {"GET": plain.models},
    "/tokenize": {"POST": plain.tokenize},
    "/detokenize": {"POST": plain.detokenize},
    "/": {"GET": page.index},
    "/live": {"GET": live.live},
    "/metrics": {"GET": metrics.metrics},
    "/requests": {"GET": requests.listed},
    "/health": {"GET": plain.health},
    "/ready": {"GET": plain.ready},
    "/version": {"GET": plain.version},
}
PREFIXES: dict[str, dict[str, Endpoint]] = {
    "/v1/models/": {"GET": plain.model},
    "/requests/": {"DELETE": requests.cancel},
}
"""Routes whose paths go on with a name."""

OPEN = frozenset({"/health", "/"})
"""What is answered without a key: the page has nothing in it but asks for all it shows. Everything
else is closed, also what does not exist."""


class App:
    """Answers requests with what a service has."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._keys = [_digest(key.encode()) for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except ClientGoneError:
            return
        except Exception as error:
            await exchange.error(as_api_error(error, exchange.request_id))

    def abort(self) -> None:
        """End every request under way; each is answered with an error."""
        self.service.requests.end_all(shutting_down())

    async def _serve(self, exchange: Exchange) -> None:
        """Raises what is to be answered instead."""
        salt = self._admit(exchange)
        if self.service.draining and exchange.path not in OPEN:
            raise shutting_down()
        work = asyncio.create_task(_endpoint(exchange)(self.service, exchange, salt))
        one = self.service.requests.begin(exchange.request_id, salt, work)
        try:
            await self._until_gone(one, exchange)
        finally:
            self.service.requests.end(one)

    async def _until_gone(self, one: InFlight, exchange: Exchange) -> None:
        """Work on an answer, for as long as there is somebody to read it."""
        work = one.task
        gone = asyncio.create_task(exchange.gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if exchange.complete:  # which looks like a client that is gone
                await asyncio.wait((work,))
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))
        if gone.done() and not gone.cancelled() and work.cancelled():
            raise ClientGoneError
        if work.cancelled():
            raise one.ended_by or shutting_down()
        work.result()

    def _admit(self, exchange: Exchange) -> str:
        """The tenant, if the request brings a key that it may have.

        Digests are compared, in a time that says nothing about how much of a key is right.
        """
        if not self._keys or exchange.path in OPEN:
            return ""
        scheme, _, key = exchange.headers.get(b"authorization", b"").partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "The API key is missing or wrong.",
                code="invalid_api_key",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        return digest.hex() if len(self._keys) > 1 else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _endpoint(exchange: Exchange) -> Endpoint:
    """Raises ``ApiError`` (404, 405)."""
    methods = ROUTES.get(exchange.path)
    if methods is None:
        for prefix, candidates in PREFIXES.items():
            if exchange.path.startswith(prefix):
                methods = candidates
    if methods is None:
        raise ApiError(404, "There is nothing at this path.", code="not_found")
    method = "GET" if exchange.method == "HEAD" else exchange.method
    if method not in methods:
        allowed = ", ".join(sorted(methods))
        raise ApiError(
            405, f"This path takes {allowed} only.", headers=[(b"allow", allowed.encode())]
        )
    return methods[method]
