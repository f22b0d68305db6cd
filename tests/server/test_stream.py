"""Streams have OpenAI's shapes, end with their client, and never outgrow it."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from support.fake_async_engine import ANSWER, RunningServer, small_tokenizer, wait_until

from ppinfer.server import connection

SCRIPT = small_tokenizer().encode(ANSWER)


def send(server: RunningServer, path: str, body: Any, buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", server.port))
    data = json.dumps(body).encode()
    sock.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return sock


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


class TestChat:
    def test_chunks(self, server: RunningServer) -> None:
        answer = server.chat(stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.events
        assert len({event["id"] for event in events}) == 1
        assert {event["object"] for event in events} == {"chat.completion.chunk"}
        assert not [event for event in events if "usage" in event]
        choices = [event["choices"][0] for event in events]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in choices) == ANSWER
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [
            "stop"
        ]
        assert choices[-1]["delta"] == {}

    def test_usage(self, server: RunningServer) -> None:
        events = server.chat(stream=True, n=2, stream_options={"include_usage": True}).events
        assert all(event["usage"] is None for event in events[:-1])
        assert events[-1]["choices"] == []
        prompt = len(server.engine.calls[0].ids)
        new = 2 * (len(SCRIPT) + 1)
        assert events[-1]["usage"] == {
            "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
        }  # fmt: skip
        assert server.chat(n=2).json["usage"] == events[-1]["usage"]

    def test_choices(self, server: RunningServer) -> None:
        texts = dict.fromkeys(range(20), "")
        for event in server.chat(stream=True, n=20).events:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
        assert texts == dict.fromkeys(range(20), ANSWER)

    def test_logprobs(self, server: RunningServer) -> None:
        whole = server.chat(logprobs=True, top_logprobs=2).json["choices"][0]
        streamed: list[Any] = []
        for event in server.chat(stream=True, logprobs=True, top_logprobs=2).events:
            if event["choices"][0]["logprobs"]:
                streamed += event["choices"][0]["logprobs"]["content"]
        assert streamed == whole["logprobs"]["content"]
        assert len(streamed) == len(SCRIPT) + 1
        data = b"".join(bytes(entry["bytes"]) for entry in streamed)
        assert data.decode() == ANSWER + "<|im_end|>"
        assert {len(entry["top_logprobs"]) for entry in streamed} == {2}
        assert set(streamed[0]) == {"token", "logprob", "bytes", "top_logprobs"}
        parts = [entry for entry in streamed if entry["token"].startswith("bytes:")]
        assert parts
        assert server.chat().json["choices"][0]["logprobs"] is None

    def test_length(self, server: RunningServer) -> None:
        choice = server.chat(max_completion_tokens=2).json["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"] == {"role": "assistant", "content": "The quick"}


class TestCompletions:
    def test_chunks(self, server: RunningServer) -> None:
        events = server.complete(
            ["a", "b"], stream=True, n=2, max_tokens=99, stream_options={"include_usage": True}
        ).events
        texts = dict.fromkeys(range(4), "")
        reasons = {}
        for event in events[:-1]:
            (choice,) = event["choices"]
            texts[choice["index"]] += choice["text"]
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
        assert texts == dict.fromkeys(range(4), ANSWER)
        assert reasons == dict.fromkeys(range(4), "stop")
        assert events[-1]["usage"]["prompt_tokens"] == 2
        assert {event["object"] for event in events} == {"text_completion"}

    def test_logprobs(self, server: RunningServer) -> None:
        whole = server.complete(logprobs=2, max_tokens=99).json["choices"][0]["logprobs"]
        streamed: dict[str, list[Any]] = {name: [] for name in whole}
        for event in server.complete(logprobs=2, max_tokens=99, stream=True).events:
            for name, values in event["choices"][0]["logprobs"].items():
                streamed[name] += values
        assert streamed == whole
        assert set(whole) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
        for token, offset in zip(whole["tokens"], whole["text_offset"], strict=True):
            if not token.startswith(("bytes:", "<|")):
                assert ANSWER[offset:].startswith(token)
        for token, value, top in zip(
            whole["tokens"], whole["token_logprobs"], whole["top_logprobs"], strict=True
        ):
            assert top[token] == value
        none = server.complete(logprobs=0).json["choices"][0]["logprobs"]
        assert {len(top) for top in none["top_logprobs"]} == {1}


class TestDisconnects:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    def test_before_the_first_token(
        self, server: RunningServer, path: str, n: int, stream: bool
    ) -> None:
        server.engine.pause = 60
        body = (CHAT if "chat" in path else {"prompt": "x"}) | {"stream": stream, "n": n}
        with send(server, path, body):
            wait_until(lambda: server.engine.open_streams == n)
        server.idle()
        assert server.engine.aborted == n

    @pytest.mark.parametrize("n", [1, 3])
    def test_in_the_stream(self, server: RunningServer, n: int) -> None:
        server.engine.pause, server.engine.endless = 0.01, True
        server.engine.info.max_model_len = 10**6
        with send(server, "/v1/chat/completions", CHAT | {"stream": True, "n": n}) as sock:
            assert b"200 OK" in sock.recv(200)
            wait_until(lambda: server.engine.taken > 5 * n)
        server.idle()
        assert server.engine.aborted == n
        taken = server.engine.taken
        time.sleep(0.05)
        assert server.engine.taken == taken

    def test_while_the_body_comes(self, server: RunningServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 50\r\n\r\n{"
            )
            wait_until(lambda: len(server.app.service.requests) == 1)
        wait_until(lambda: len(server.app.service.requests) == 0)
        assert not server.engine.calls
        assert server.chat().status == 200

    def test_a_reader_that_stops(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing more is taken from the engine, and after a while the client is given up."""
        engine = server.engine
        engine.endless, engine.info.max_model_len = True, 10**8
        body = CHAT | {"stream": True}
        with send(server, "/v1/chat/completions", body, buffer=4096):
            wait_until(lambda: engine.taken > 0)
            seen = 0
            while engine.taken != seen:  # until the buffers of the system are full
                seen = engine.taken
                time.sleep(0.25)
            assert engine.open_streams == 1
        server.idle()
        monkeypatch.setattr(connection, "STALL_SECONDS", 0.1)
        with send(server, "/v1/chat/completions", body, buffer=4096):
            wait_until(lambda: engine.aborted == 2)

    def test_many_come_and_go(self, server: RunningServer) -> None:
        server.engine.pause, server.engine.endless = 0.005, True
        for round_ in range(20):
            sock = send(server, "/v1/chat/completions", CHAT | {"stream": bool(round_ % 2)})
            time.sleep(0.002 * (round_ % 5))
            sock.close()
        server.idle()
        server.engine.endless = False
        assert server.chat().status == 200
        wait_until(lambda: len(server.app.service.requests) == 0)
