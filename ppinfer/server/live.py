"""``/live``: server-sent events with what the page shows, five a second."""

from __future__ import annotations

from ppinfer.server.exchange import Exchange
from ppinfer.server.service import Service


async def live(service: Service, exchange: Exchange, salt: str) -> None:
    with service.hub.viewer(salt) as viewer:
        await exchange.start_events()
        async for event in viewer.events():
            await exchange.event(event)
        await exchange.end_events()
