"""Requests that are being answered, for people: a list of them, and a way to end one."""

from __future__ import annotations

from ppinfer.server.errors import ApiError
from ppinfer.server.exchange import Exchange
from ppinfer.server.service import Service


async def listed(service: Service, exchange: Exchange, salt: str) -> None:
    """Those that came with the same key."""
    state = await service.observed.refresh(service.engine)
    await exchange.json({"data": service.requests.views(salt, state.sequences)})


async def cancel(service: Service, exchange: Exchange, salt: str) -> None:
    request_id = exchange.path.removeprefix("/requests/")
    count = service.requests.cancel(request_id, salt)
    if not count:
        raise ApiError(404, "There is no such request at work.", code="request_not_found")
    await exchange.json({"id": request_id, "cancelled": count})
