"""The server as a process: start, signals, end."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fake_async_engine import running_server, wait_until
from support.processes import Marked

from ppinfer.errors import ConfigError
from ppinfer.server.connection import Connection
from ppinfer.server.run import listen

TESTS = Path(__file__).parents[1]

PROGRAM = """
import asyncio, signal, sys
from support.fake_async_engine import FakeAsyncEngine
from ppinfer.server.run import listen, serve
from ppinfer.server.settings import ServerSettings

engine = FakeAsyncEngine(max_model_len=10**6)
engine.endless, engine.pause = True, 0.01
signal.signal(signal.SIGUSR1, lambda *_: setattr(engine, "endless", False))

async def create():
    await asyncio.sleep(float(sys.argv[2]))
    if sys.argv[3] == "fail":
        raise RuntimeError("no such model")
    return engine

settings = ServerSettings(model_names=("small",), shutdown_timeout=float(sys.argv[1]))
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    tell = lambda *what: print("told", flush=True)
    status = asyncio.run(serve(settings, listener, create, tell, tell))
print("closed", engine.closed, "open", engine.open_streams, flush=True)
sys.exit(status)
"""


class Running:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.connections: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        self.connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60))
        return self.connections[-1]

    def ask(self, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = self.connect()
        data = json.dumps(body) if body else None
        connection.request(
            "POST" if body else "GET", path, data, {"Content-Type": "application/json"}
        )
        return connection.getresponse()

    def stream(self, tokens: int) -> http.client.HTTPResponse:
        body = {"prompt": "x", "stream": True, "max_tokens": tokens}
        return self.ask("/v1/completions", body)

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionError:
            return False
        return True

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        assert ready
        return self.process.stdout.readline().decode().strip()


@contextmanager
def running(shutdown: float = 60, load: float = 0, then: str = "serve") -> Iterator[Running]:
    marked = Marked.new()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(shutdown), str(load), then],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # so that select() sees every line
        env=marked.environment | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )
    started = Running(process, 0)
    try:
        started.port = int(started.line())
        yield started
    finally:
        for connection in started.connections:
            connection.close()
        process.kill()
        process.communicate()
        marked.assert_all_gone()


def ended(server: Running, status: int, within: float = 30.0) -> None:
    """With everything closed, and nothing said on standard error."""
    out, err = server.process.communicate(timeout=within)
    assert (server.process.returncode, err) == (status, b"")
    assert out.strip().endswith(b"closed True open 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_request_ends_first(number: signal.Signals) -> None:
    with running() as server:
        assert server.line() == "told"
        answer = server.stream(10**5)
        assert answer.status == 200
        server.process.send_signal(number)
        assert server.line() == "told"
        wait_until(lambda: not server.listens())
        server.process.send_signal(signal.SIGUSR1)  # its answers come to their end
        assert answer.read().endswith(b"data: [DONE]\n\n")
        ended(server, 0)


def test_a_request_that_goes_on_too_long() -> None:
    with running(shutdown=0.5) as server:
        assert server.line() == "told"
        streamed = server.stream(10**5)
        waiting = server.connect()
        body = json.dumps({"prompt": "x", "max_tokens": 10**5})
        waiting.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        wait_until(lambda: len(json.load(server.ask("/requests"))["data"]) == 2)
        server.process.send_signal(signal.SIGTERM)
        last = streamed.read().decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        answer = waiting.getresponse()
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        ended(server, 0)


def test_a_second_signal() -> None:
    with running() as server:
        assert server.line() == "told"
        answer = server.stream(10**5)
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "told"
        server.process.send_signal(signal.SIGTERM)
        ended(server, 128 + signal.SIGTERM)
        answer.read()


def test_idle_connections_do_not_hold_it_up() -> None:
    with running() as server:
        assert server.line() == "told"
        with (
            socket.create_connection(("127.0.0.1", server.port)),
            socket.create_connection(("127.0.0.1", server.port)) as half,
        ):
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
            assert server.ask("/health").status == 200  # by then it has those two as well
            server.process.send_signal(signal.SIGTERM)
            ended(server, 0)


def test_a_connection_that_is_accepted_in_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to be when all others have been told to end."""
    make, accepted = Connection.connection_made, threading.Event()

    def made_late(connection: Connection, transport: asyncio.Transport) -> None:
        accepted.set()
        if server.server.servers[0].is_serving():
            connection.loop.call_later(0.01, made_late, connection, transport)
        else:
            make(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", made_late)
    with (
        running_server() as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as client,
    ):
        assert accepted.wait(30)
        server.app.service.draining = server.server.should_exit = True
        assert client.recv(1) == b""


def test_while_it_loads() -> None:
    with running(load=60) as server:
        assert server.ask("/health").status == 200
        assert server.ask("/ready").status == 503
        server.process.send_signal(signal.SIGTERM)
        out, err = server.process.communicate(timeout=30)
        assert (server.process.returncode, err) == (0, b"")
        assert out.endswith(b"closed False open 0\n")


def test_a_model_that_does_not_load() -> None:
    with running(load=0.2, then="fail") as server:
        _, err = server.process.communicate(timeout=30)
        assert server.process.returncode == 1
        assert err.strip().endswith(b"RuntimeError: no such model")


def test_a_port_in_use() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    for host in ("no-such-host.invalid", "192.0.2.1", "a" * 300):
        with pytest.raises(ConfigError, match="listen on"):
            listen(host, 0)
