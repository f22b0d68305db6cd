"""The server as a process: its socket, its signals, and its end.

The socket is bound first, so that a port in use is told before a model is loaded, and health is
answered while it is. The first SIGTERM or SIGINT lets running requests end, for a while; the second
ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn

from ppinfer.errors import ConfigError
from ppinfer.server.app import App
from ppinfer.server.backend import Engine
from ppinfer.server.connection import Connection
from ppinfer.server.service import Service
from ppinfer.server.settings import ServerSettings

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
_LAST_WORDS_SECONDS = 2.0
"""For answers to requests that are ended, before their connections are."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"There is no address {host!r} to listen on.") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} of {host} is in use; end what listens there, or choose another."
            ) from error
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from error
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn's server for one application, which leaves signals to whoever runs it."""

    def __init__(self, app: App) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: ServerSettings,
    listener: socket.socket,
    create_engine: Callable[[], Awaitable[Engine]],
    on_ready: Callable[[Engine], None],
    on_signal: Callable[[str], None],
) -> int:
    """Serve until a signal comes. Returns the exit status.

    Args:
        create_engine: loads the model; requests are told to wait until it has.
        on_ready: called once they are answered.
        on_signal: called with what a signal makes the server do.

    Raises:
        PPInferError: what ``create_engine`` raises.
    """
    service = Service(settings)
    app = App(service)
    server = HttpServer(app)
    signals = _Signals()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.ensure_future(create_engine())
    engine: Engine | None = None
    try:
        with signals.handled():
            await _first(loading, signals.first)
            if loading.done():
                engine = loading.result()
                service.open(engine)
                on_ready(engine)
                await _first(signals.first, serving)
            service.draining = True
            server.should_exit = True
            on_signal(f"ending; requests have {settings.shutdown_timeout:g} s to finish")
            await _drain(serving, app, signals, settings.shutdown_timeout)
            return 128 + signals.number if signals.second.done() else 0
    finally:
        server.should_exit = server.force_exit = True
        if engine is None:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                engine = await loading
        if engine is not None:
            await engine.close()
        await serving
        service.texts.close()


async def _drain(serving: asyncio.Task[None], app: App, signals: _Signals, seconds: float) -> None:
    """Wait for running requests; end those that go on too long, or at the second signal."""
    await _first(serving, signals.second, timeout=seconds)
    if not serving.done():
        app.abort()
        await _first(serving, timeout=_LAST_WORDS_SECONDS)


async def _first(
    *awaited: asyncio.Future[None] | asyncio.Future[Engine], timeout: float | None = None
) -> None:
    await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


class _Signals:
    """Futures of the first and the second signal."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.second: asyncio.Future[None] = loop.create_future()
        self.number = 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _take(self, number: int) -> None:
        self.number = number
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(None)
                return
