"""A server of OpenAI's kind that says numbers, on a free port, in a thread of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeOpenAI:
    """How the server behaves, and what it was asked.

    Attributes:
        delay: seconds before each piece of an answer.
        fail: statuses to answer with, by the request's number after the first short ones.
        unknown: fields that it refuses.
        one_at_a_time: requests wait for each other.
        cut: streams end after this many pieces, without a word.
        vanish: likewise, and without the end that HTTP has for them.
        piece: bytes that are sent at a time, and no more.
        line_end: what ends lines of a stream; with another than LF there are comments, too.
        models: the names that it says it serves.
        like_transformers: as ``transformers serve`` has it: usage is in the last chunk, asked for
            or not, no ``[DONE]`` follows, and what is refused gets 422 with a ``detail``.
    """

    delay: float = 0.0
    usage: bool = True
    tokenize: bool = True
    api_key: str | None = None
    fail: dict[int, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    one_at_a_time: bool = False
    cut: int | None = None
    vanish: int | None = None
    piece: int | None = None
    line_end: bytes = b"\n"
    models: tuple[str, ...] = ("numbers",)
    like_transformers: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.at_once = 0

    @property
    def load(self) -> list[dict[str, Any]]:
        """The requests of the load: those for more than one token."""
        return [body for body in self.asked if body["max_tokens"] > 1]


@contextmanager
def serving(fake: FakeOpenAI) -> Iterator[FakeOpenAI]:
    class Handler(_Handler):
        behaviour = fake

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024  # beyond it, connections wait a second to be tried again
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    behaviour: FakeOpenAI
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        key = self.behaviour.api_key
        if key is not None and self.headers["Authorization"] != f"Bearer {key}":
            self._error(401, "wrong key")
        else:
            data = [{"id": name} for name in self.behaviour.models]
            self._answer(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        fake = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if not fake.tokenize or "prompt" not in body:
                return self._error(404, "not here")
            return self._answer(200, {"count": len(body["prompt"].split())})
        with fake.lock:
            fake.asked.append(body)
            number = len(fake.load) - 1
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
        try:
            for name in fake.unknown:
                if name in body:
                    return self._refuse(f"unknown field {name}")
            if body["max_tokens"] > 1 and number in fake.fail:
                return self._error(fake.fail[number], "not now")
            if fake.one_at_a_time:
                with fake.turn:
                    return self._stream(body)
            return self._stream(body)
        finally:
            with fake.lock:
                fake.at_once -= 1

    def _stream(self, body: dict[str, Any]) -> None:
        fake, is_chat = self.behaviour, "messages" in body
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if is_chat:
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number in range(body["max_tokens"]):
            time.sleep(fake.delay)
            if number == fake.cut:
                self.wfile.write(b"0\r\n\r\n")
                return
            if number == fake.vanish:
                self.close_connection = True
                return
            text = f" {number}"
            choice = {"delta": {"content": text}} if is_chat else {"text": text}
            self._event({"choices": [choice | {"finish_reason": None}]})
        last = {"delta": {}} if is_chat else {"text": ""}
        end: dict[str, Any] = {"choices": [last | {"finish_reason": "length"}]}
        count = len(prompt.split()) + (5 if is_chat else 0)
        usage = {"prompt_tokens": count, "completion_tokens": body["max_tokens"]}
        if fake.like_transformers:
            self._event(end | {"usage": usage})
        else:
            self._event(end)
            if fake.usage and "stream_options" in body:
                self._event({"choices": [], "usage": usage})
            self._line(b"data: [DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, value: dict[str, Any]) -> None:
        self._line(b"data: " + json.dumps(value).encode())

    def _line(self, line: bytes) -> None:
        end = self.behaviour.line_end
        data = (b"" if end == b"\n" else b": still here" + end) + line + end + end
        size = self.behaviour.piece or len(data)
        for at in range(0, len(data), size):
            self._chunk(data[at : at + size])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _refuse(self, why: str) -> None:
        if self.behaviour.like_transformers:
            self._answer(422, {"detail": why})
        else:
            self._error(400, why)

    def _error(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "x", "code": status}})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        if self.behaviour.piece:
            time.sleep(0.01)  # the rest comes by itself
        self.wfile.write(data[half:])
