"""Answers computed here: the endpoints of the server over an engine, without HTTP."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from msgspec import Raw

from ppinfer.batch.lines import LONGEST_BODY, Asked, Response
from ppinfer.errors import EngineClosedError, StageError
from ppinfer.server.app import ROUTES
from ppinfer.server.backend import Engine
from ppinfer.server.errors import as_api_error
from ppinfer.server.exchange import Exchange
from ppinfer.server.service import Service
from ppinfer.server.settings import ServerSettings

_NO_LIMIT = 2**31
"""Of sequences at once: how many there are is for the batch to say."""


class LocalAnswerer:
    """Answers as ``ppinfer serve`` does, to a client that may be trusted with all of it."""

    def __init__(self, engine: Engine, model_names: tuple[str, ...]) -> None:
        self._service = Service(
            ServerSettings(
                model_names=model_names, max_queue=_NO_LIMIT, max_body_bytes=LONGEST_BODY
            )
        )
        self._service.open(engine)

    async def answer(self, asked: Asked) -> Response:
        """Raises what ended the engine."""
        wire = _Wire(asked.body)
        scope = {
            "path": asked.url, "method": "POST", "headers": [(b"content-type", b"application/json")]
        }  # fmt: skip
        exchange = Exchange(scope, wire.receive, wire.send)
        try:
            await ROUTES[asked.url]["POST"](self._service, exchange, "")
        except (StageError, EngineClosedError):
            raise
        except Exception as error:
            await exchange.error(as_api_error(error, exchange.request_id))
        return Response(wire.status, exchange.request_id, Raw(wire.body))

    def close(self) -> None:
        self._service.texts.close()


class _Wire:
    """What an ASGI server would be for one request."""

    def __init__(self, body: bytes) -> None:
        self._request = body
        self.status, self.body = 0, b""

    async def receive(self) -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": self._request, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
