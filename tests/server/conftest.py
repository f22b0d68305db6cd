"""A server with a scripted engine; tests change the engine and find it new each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_async_engine import FakeAsyncEngine, RunningServer, running_server, wait_until


@pytest.fixture(scope="session")
def one_server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def server(one_server: RunningServer) -> Iterator[RunningServer]:
    service = one_server.app.service
    # Whoever watched in the test before would look at the new engine.
    wait_until(lambda: service.hub._looking is None and not len(service.requests))
    one_server.engine = FakeAsyncEngine()
    service.open(one_server.engine)
    yield one_server
    one_server.idle()
