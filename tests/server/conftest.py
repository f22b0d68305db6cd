"""A server with a scripted engine; tests change the engine and find it new each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_async_engine import FakeAsyncEngine, RunningServer, running_server


@pytest.fixture(scope="session")
def one_server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def server(one_server: RunningServer) -> Iterator[RunningServer]:
    engine = FakeAsyncEngine()
    one_server.engine = engine
    one_server.app.service.open(engine)
    yield one_server
    one_server.idle()
