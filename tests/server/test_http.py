"""What comes over the wire, however odd, is answered in OpenAI's shape or cut off."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
from support.fake_async_engine import FakeAsyncEngine, RunningServer, running_server, wait_until

from ppinfer.errors import CapacityError, EngineClosedError, RequestError, StageError
from ppinfer.server import connection
from ppinfer.version import __version__

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()


def raw(server: RunningServer, data: bytes, at_once: bool = False) -> bytes:
    """What is answered until the server closes; ``at_once``, it finds all of ``data`` there."""
    with socket.socket() as sock:
        sock.settimeout(30)
        received = b""
        with held(server) if at_once else nullcontext(), suppress(ConnectionError):
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(data)
        with suppress(ConnectionError):
            while part := sock.recv(65_536):
                received += part
    return received


@contextmanager
def held(server: RunningServer) -> Iterator[None]:
    """The server does nothing meanwhile."""
    stands, go_on = threading.Event(), threading.Event()
    server.loop.call_soon_threadsafe(lambda: (stands.set(), go_on.wait()))
    stands.wait()
    try:
        yield
    finally:
        go_on.set()


def head(*headers: str, path: str = CHAT, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b'{"messages": [', b"null", b"[]", b'"x"', b"5", b"{}x", b"\xff\xfe{}",
            b"\xef\xbb\xbf{}", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
            b'{"user": "\xc3("}',
            b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"zz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"n": ' + b"7" * 10_000 + b"}", b"\x1f\x8b\x08\x00", b"prompt=x",
            b'{"a": 1} {"b": 2}',
        ],
        ids=lambda body: str(body[:20]),
    )  # fmt: skip
    @pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
    def test_no_json_of_ours(self, server: RunningServer, path: str, body: bytes) -> None:
        answer = server.request("POST", path, body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert len(answer.body) < 500
        assert server.chat().status == 200

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_content_type(self, server: RunningServer, kind: str) -> None:
        answer = server.request("POST", CHAT, BODY, {"Content-Type": kind})
        assert answer.status == 415
        assert "application/json" in answer.error["message"]
        kinds = "Application/JSON; charset=utf-8"
        assert server.request("POST", CHAT, BODY, {"Content-Type": kinds}).status == 200

    def test_too_large(self) -> None:
        with running_server(max_body_bytes=1000) as server:
            assert server.complete("x " * 600).status == 413
            assert server.complete("x " * 600).error["message"] == (
                "The body must not be longer than 1,000 bytes."
            )
            told = raw(server, head("Content-Length: 1001", "Connection: close"))
            assert told.startswith(b"HTTP/1.1 413")
            chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
            chunked = head("Transfer-Encoding: chunked", "Connection: close")
            untold = raw(server, chunked + chunk * 3)
            assert untold.startswith(b"HTTP/1.1 413")
            assert server.complete("x").status == 200

    def test_answered_early_and_then_asked_again(self) -> None:
        """The rest of a body that nobody wants is not taken for the next request."""
        with running_server(max_body_bytes=1000) as server:
            asked = head("Content-Length: 200000") + b" " * 200_000
            again = head("Connection: close", path="/version", method="GET")
            received = raw(server, asked + again)
            assert received.count(b"HTTP/1.1 413") == 1
            assert received.endswith(
                json.dumps({"version": __version__}, separators=(",", ":")).encode()
            )

    def test_one_byte_chunks(self, server: RunningServer) -> None:
        padded = BODY + b" " * 5_000
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n"
        received = raw(server, head("Transfer-Encoding: chunked", "Connection: close") + chunks)
        assert received.startswith(b"HTTP/1.1 200")

    def test_continue(self, server: RunningServer) -> None:
        asked = head("Expect: 100-continue", f"Content-Length: {len(BODY)}", "Connection: close")
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
            sock.sendall(asked)
            assert sock.recv(1000).startswith(b"HTTP/1.1 100")
            sock.sendall(BODY)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")


class TestPaths:
    @pytest.mark.parametrize("path", ["/x", "/v1", "/v2/x", "//v1/models", "/v1/chat/completions/",
                                      "/%2e%2e/etc/passwd", "/v1/models%00"])  # fmt: skip
    def test_unknown(self, server: RunningServer, path: str) -> None:
        answer = server.request("GET", path)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        assert b"passwd" not in answer.body

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/health", "GET"),
         ("PUT", "/v1/completions", "POST"), ("OPTIONS", CHAT, "POST")],
    )  # fmt: skip
    def test_wrong_method(
        self, server: RunningServer, method: str, path: str, allowed: str
    ) -> None:
        answer = server.request(method, path)
        assert answer.status == 405
        assert answer.headers["allow"] == allowed
        assert answer.error

    def test_no_other_origin_is_let_in(self, server: RunningServer) -> None:
        answer = server.request("GET", "/v1/models", headers={"Origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_small_endpoints(self, server: RunningServer) -> None:
        assert server.request("GET", "/version").json == {"version": __version__}
        listed = server.request("GET", "/v1/models").json
        assert [model["id"] for model in listed["data"]] == ["small"]
        assert server.request("GET", "/v1/models/small").json == listed["data"][0]
        answer = server.request("GET", "/v1/models/other/one")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert server.request("HEAD", "/health").status == 200

    def test_request_ids(self, server: RunningServer) -> None:
        first, second = (server.request("GET", "/health").headers["x-request-id"] for _ in "ab")
        assert first != second
        for own, kept in [("abc-1.2:3", True), ("x" * 200, False), ("a b", False), ("é", False)]:
            given = {"X-Request-Id": own.encode("latin-1").decode("latin-1")}
            got = server.request("GET", "/nothing", headers=given).headers["x-request-id"]
            assert (got == own) is kept


class TestTokens:
    def test_there_and_back(self, server: RunningServer) -> None:
        text = "Zwölf 今日 <|im_end|>\0"
        found = server.request("POST", "/tokenize", {"prompt": text}).json
        assert found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 100
        back = server.request("POST", "/detokenize", {"tokens": found["tokens"]})
        assert back.json == {"prompt": text}

    def test_chats(self, server: RunningServer) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        long = server.request("POST", "/tokenize", {"messages": messages}).json["tokens"]
        asked = {"messages": messages, "add_generation_prompt": False}
        short = server.request("POST", "/tokenize", asked).json["tokens"]
        assert long[: len(short)] == short
        assert len(long) > len(short)

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": 5}, "prompt"),
            ("/tokenize", {"prompt": "x", "messages": []}, "prompt"),
            ("/tokenize", {"messages": []}, "messages"), ("/tokenize", {"text": "x"}, "text"),
            ("/tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
            ("/tokenize", {"messages": [], "add_special_tokens": True}, "add_special_tokens"),
            ("/detokenize", {"tokens": [10**6]}, "tokens"), ("/detokenize", {}, "tokens"),
            ("/detokenize", {"tokens": [-1]}, "tokens"),
            ("/detokenize", {"tokens": [2**70]}, "tokens"),
            ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ],
    )  # fmt: skip
    def test_refused(self, server: RunningServer, path: str, body: Any, param: str) -> None:
        answer = server.request("POST", path, body)
        assert (answer.status, answer.error["param"]) == (400, param)

    def test_without_a_tokenizer(self, server: RunningServer) -> None:
        tokenizer, server.engine.tokenizer = server.engine.tokenizer, None
        for answer in (
            server.chat(),
            server.complete("x"),
            server.request("POST", "/tokenize", {"prompt": "x"}),
            server.request("POST", "/detokenize", {"tokens": [5]}),
        ):
            assert answer.status == 400
            assert "no tokenizer" in answer.error["message"]
        server.engine.tokenizer = tokenizer


class TestHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            [f"X-{i}: y" for i in range(200)], ["X: " + "y" * 70_000], ["Y" * 70_000 + ": x"],
            [f"X-{i}: " + "y" * 5_000 for i in range(20)], ["X: " + "y" * 5_000_000],
        ],
        ids=["many", "huge value", "huge name", "together", "giant"],
    )  # fmt: skip
    def test_too_many_or_too_large(self, server: RunningServer, headers: list[str]) -> None:
        received = raw(server, head(*headers, method="GET", path="/health"))
        assert received.startswith(b"HTTP/1.1 431") or not received  # reset while it still sends
        if received:
            assert json.loads(received.split(b"\r\n\r\n", 1)[1])["error"]["message"]
        assert server.chat().status == 200

    def test_trailers(self, server: RunningServer) -> None:
        trailer = b"0\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200))
        received = raw(server, head("Transfer-Encoding: chunked") + trailer)
        assert received.startswith(b"HTTP/1.1 4")

    def test_long_path(self, server: RunningServer) -> None:
        assert raw(server, head(path="/" + "x" * 70_000)).startswith(b"HTTP/1.1 431")

    @pytest.mark.parametrize(
        "data",
        [
            head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
            head("Content-Length: 5", "Content-Length: 6") + b"12345",
            head("Content-Length: -5"), head("Content-Length: x"),
            head("Content-Length: 9" + "9" * 50),
            head("Transfer-Encoding: chunked") + b"zz\r\n", b"nonsense\r\n\r\n",
            b"\x16\x03\x01\x02",
            b"GET / HTTP/9.9\r\n\r\n", b"POST\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n",
            head("Connection: close", path="*", method="OPTIONS"), b"CONNECT a:5 HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nA\0: b\r\n\r\n",
        ],
        ids=lambda data: str(data[-24:]),
    )  # fmt: skip
    def test_bad_http(self, server: RunningServer, data: bytes) -> None:
        received = raw(server, data)
        assert received.startswith(b"HTTP/1.1 4")
        assert b'{"error":' in received
        assert server.chat().status == 200

    def test_two_requests_at_once(self, server: RunningServer) -> None:
        one = head(path="/version", method="GET")
        received = raw(server, one * 2 + head("Connection: close", path="/x", method="GET"))
        assert received.count(b"HTTP/1.1 200") == 2
        assert received.count(b"HTTP/1.1 404") == 1


class TestTime:
    @pytest.mark.parametrize(
        ("data", "answer"),
        [(b"", b""), (b"POST", b""), (head()[:-2], b"HTTP/1.1 408"),
         (head("Content-Length: 100") + b"{", b"HTTP/1.1 408"),
         (head("Transfer-Encoding: chunked") + b"5\r\n12", b"HTTP/1.1 408")],
        ids=["nothing", "first line", "headers", "body", "chunk"],
    )  # fmt: skip
    def test_trickles(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch, data: bytes, answer: bytes
    ) -> None:
        monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.2)
        start = time.monotonic()
        received = raw(server, data, at_once=True)
        assert time.monotonic() - start > 0.1
        assert received[:12] == answer

    def test_one_byte_now_and_then(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.3)
        with (
            socket.create_connection(("127.0.0.1", server.port)) as sock,
            pytest.raises(ConnectionError),
        ):
            for byte in head() * 10:
                sock.sendall(bytes([byte]))
                time.sleep(0.02)

    def test_slow_answers_have_no_deadline(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.1)
        server.engine.pause = 0.03
        body = BODY.replace(b"{", b'{"stream": true, ', 1)
        asked = head(f"Content-Length: {len(body)}", "Connection: close") + body
        received = raw(server, asked, at_once=True)
        assert received.count(b"data: ") > 10
        assert b"data: [DONE]" in received


class TestKeys:
    def test_closed(self) -> None:
        with running_server(api_keys=("k1", "schlüssel")) as server:
            for headers in [
                {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"},
                {"Authorization": "k1"}, {"Authorization": "Basic k1"},
                {"Authorization": "Bearer k1x"}, {"Authorization": "Bearer \xfc\xff"},
                {"Authorization": "Bearer k"}, {"Host": "health"}, {"X-Api-Key": "k1"},
            ]:  # fmt: skip
                for path in (
                    "/v1/models", "//v1/models", "/v1//models", "/version", "/ready", "/x", "//",
                    "/metrics", "/live", "/requests",
                    "//health", "/health/", "/health/../v1/models", "/v1/models?/health",
                    "/%68ealth/x",
                ):  # fmt: skip
                    answer = server.request("GET", path, headers=headers)
                    assert answer.status == 401, (headers, path)
                    assert answer.error["code"] == "invalid_api_key"
            assert server.request("POST", CHAT, b"{", {"Content-Type": "x"}).status == 401
            assert server.request("GET", "/health").status == 200
            assert server.request("GET", "/").status == 200

    def test_open_to_a_key(self) -> None:
        with running_server(api_keys=("k1", "schlüssel")) as server:
            for key in ("k1", "schlüssel"):
                header = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
                assert server.request("POST", CHAT, BODY, header).status == 200
                assert server.request("POST", CHAT, BODY, header).status == 200
            salts = [call.salt for call in server.engine.calls]
            assert salts[0] == salts[1] != salts[2] == salts[3]
            assert "k1" not in salts

    def test_one_key_is_one_tenant(self) -> None:
        with running_server(api_keys=("k1",)) as server:
            assert server.request("POST", CHAT, BODY, {"Authorization": "bearer k1"}).status == 200
            assert server.engine.calls[0].salt == ""


class TestStates:
    def test_loading(self) -> None:
        with running_server(load=False) as server:
            assert server.request("GET", "/health").status == 200
            for answer in (
                server.request("GET", "/ready"), server.request("GET", "/v1/models"), server.chat(),
            ):  # fmt: skip
                assert (answer.status, answer.error["code"]) == (503, "loading")
                assert int(answer.headers["retry-after"]) > 0

    def test_a_pipeline_that_does_not_answer(self, server: RunningServer) -> None:
        server.engine.check_error = StageError("Stage 1 (pid 77) did not answer.", 1)
        answer = server.request("GET", "/ready")
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert "77" not in answer.error["message"]
        assert server.request("GET", "/health").status == 200

    def test_an_engine_that_has_ended(self, server: RunningServer) -> None:
        server.engine.is_alive = False
        assert server.request("GET", "/health").status == 503

    @pytest.mark.parametrize("at", [-1, 0, 2])
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (RequestError("The prompt in /home/me/x.py is <X at 0x7f00aa>: no."), 400),
            (CapacityError("The prompt needs 9 KV cache blocks, and there are 8."), 400),
            (EngineClosedError("closed"), 503),
            (StageError("Stage 0 of pid 9 died: /x/y.", 0), 503),
            (RuntimeError("secret at 0x7f001122"), 500),
        ],
    )  # fmt: skip
    def test_engine_errors(
        self, server: RunningServer, at: int, error: Exception, status: int
    ) -> None:
        server.engine.fail_at = (at, error)
        for answer in (server.chat(), server.complete(n=2), server.complete(["a", "b"])):
            assert answer.status == status
            for private in ("0x", "/home", "/x/y", "secret", "pid"):
                assert private not in answer.error["message"]
        streamed = server.chat(stream=True)
        if at < 1:
            assert streamed.status == status
        else:
            assert streamed.status == 200
            last = streamed.body.decode().strip().split("\n\n")[-1]
            assert set(json.loads(last.removeprefix("data: "))["error"]) == {
                "message", "type", "param", "code",
            }  # fmt: skip
        server.engine.fail_at = None
        assert server.chat().status == 200


def test_full_queue() -> None:
    engine = FakeAsyncEngine(max_model_len=10**6)
    engine.endless, engine.pause = True, 0.01
    with running_server(engine, max_queue=3) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            body = json.dumps({"prompt": "x", "n": 2, "stream": True, "max_tokens": 10**5}).encode()
            sock.sendall(head(f"Content-Length: {len(body)}", path="/v1/completions") + body)
            wait_until(lambda: engine.open_streams == 2)
            for answer in (server.complete(n=2), server.complete(["a", "b"]), server.chat(n=2)):
                assert (answer.status, answer.error["code"]) == (429, "queue_full")
                assert int(answer.headers["retry-after"]) > 0
            assert server.complete("x", max_tokens=3).status == 200
            assert server.request("GET", "/ready").status == 200
            for answer, param in [
                (server.complete(n=4), "n"), (server.complete(["a"] * 4), "prompt"),
            ]:  # fmt: skip
                assert (answer.status, answer.error["param"]) == (400, param)
        server.idle()
        assert engine.aborted == 2
        engine.endless = False
        assert server.complete(n=3).status == 200
