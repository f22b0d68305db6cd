"""``/live`` for who watches, and requests that are listed and cancelled."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from support.fake_async_engine import (
    Answer,
    FakeAsyncEngine,
    RunningServer,
    running_server,
    wait_until,
)

from ppinfer.errors import EngineClosedError
from ppinfer.server import hub, observed
from ppinfer.server.hub import Event, Viewer
from ppinfer.server.rates import Sample
from ppinfer.server.service import Service
from ppinfer.server.settings import ServerSettings


class Watching:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response

    def next(self) -> Any:
        line = self.response.readline()
        assert self.response.readline() == b"\n"
        data = line.decode().removeprefix("data: ").strip()
        return None if data == "[DONE]" else json.loads(data)

    def until(self, condition: Any, most: int = 150) -> Any:
        for _ in range(most):
            event = self.next()
            if event is not None and condition(event):
                return event
        raise AssertionError("it did not come to that")


@contextmanager
def watching(server: RunningServer, key: str | None = None) -> Iterator[Watching]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request("GET", "/live", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        yield Watching(response)
    finally:
        connection.close()


@contextmanager
def asked(server: RunningServer, name: str, key: str = "", **fields: Any) -> Iterator[list[Answer]]:
    """A request of its own thread, as long as this; what was answered is there at the end."""
    answers: list[Answer] = []
    headers = {"X-Request-Id": name} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = {"prompt": "Hi there", "max_tokens": 10**5} | fields
    thread = threading.Thread(
        target=lambda: answers.append(server.request("POST", "/v1/completions", body, headers))
    )
    server.engine.endless, server.engine.pause = True, 0.05
    server.engine.info.max_model_len = 10**6
    thread.start()
    wait_until(lambda: any(one.id == name for one in server.app.service.requests.generating))
    try:
        yield answers
    finally:
        server.engine.endless, server.engine.pause = False, 0.0
        thread.join(30)
        assert not thread.is_alive()


def has_all_kinds(event: Any) -> bool:
    """Two micro-batches, and waits for input."""
    return set(event["engine"]["stages"][0]["boxes"][::4]) >= {0, 1, -2}


def test_what_is_told(server: RunningServer) -> None:
    with watching(server) as watch:
        first = watch.next()
        assert first["engine"]["status"] == "serving"
        assert first["engine"]["model"] == "small"
        assert [stage["last_layer"] for stage in first["engine"]["stages"]] == [3, 6]
        assert (first["requests"], first["others"]) == ([], 0)
        with asked(server, "mine", n=2):
            event = watch.until(lambda event: event["requests"] and event["engine"]["steps"])
            (request,) = event["requests"]
            assert (request["id"], request["answers"]) == ("mine", 2)
            assert request["phase"] in ("prefill", "decode")
            assert request["prompt_tokens"] > 0
            assert "Hi there" not in json.dumps(event)
            event = watch.until(lambda event: event["requests"][0]["new_tokens"] > 1)
            assert event["requests"][0]["phase"] == "decode"
            boxes = event["engine"]["stages"][0]["boxes"]
            assert len(boxes) % 4 == 0
            watch.until(has_all_kinds)
        sampled = watch.until(lambda event: event["samples"])
        assert sampled["engine"]["stages"][0]["shares"]["busy"] == pytest.approx(0.5, abs=0.05)
    with watching(server) as watch:
        assert sampled["samples"][-1] in watch.next()["samples"], "the last minutes"


def test_nothing_is_asked_of_the_engine_unless_somebody_watches(server: RunningServer) -> None:
    stages = server.engine.stages
    assert server.chat().status == 200
    assert stages.looks == 0
    with watching(server) as one, watching(server) as other:
        one.next()
        other.next()
        began, looks = time.monotonic(), stages.looks
        for _ in range(3):
            one.next()
        assert stages.looks - looks <= (time.monotonic() - began) / hub.INTERVAL + 2
    wait_until(lambda: stages.looked_away == 1)
    looks = stages.looks
    time.sleep(2 * hub.INTERVAL)
    assert stages.looks == looks


def test_whenever_a_viewer_leaves_the_looking_ends() -> None:
    async def leave_after(turns: int) -> None:
        service = Service(ServerSettings(model_names=("small",)))
        service.open(FakeAsyncEngine())
        with service.hub.viewer(""):
            looking = service.hub._looking
            assert looking is not None
            for _ in range(turns):
                await asyncio.sleep(0)
        await asyncio.wait((looking,), timeout=30)
        service.texts.close()
        assert looking.done(), turns

    async def run() -> None:
        for turns in range(8):
            await leave_after(turns)

    asyncio.run(run())


def test_too_many(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MOST_VIEWERS", 1)
    with watching(server) as watch:
        watch.next()
        answer = server.request("GET", "/live")
        assert (answer.status, answer.error["code"]) == (429, "too_many_viewers")


def age(event: Any) -> float:
    """Since the first stage was heard."""
    return float(event["engine"]["stages"][0]["heartbeat_age"])


def test_how_the_engine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "PATIENCE", 0.1)
    with running_server(load=False) as server, watching(server) as watch:
        assert watch.next()["engine"]["status"] == "loading"
        server.loop.call_soon_threadsafe(server.app.service.open, server.engine)
        event = watch.until(lambda event: event["engine"]["status"] == "serving")
        known = age(event)
        server.engine.state_error = TimeoutError()
        watch.until(lambda event: event["engine"]["status"] == "silent" and age(event) > known)
        server.engine.state_error = None
        watch.until(lambda event: event["engine"]["status"] == "serving")
        server.engine.state_error, server.engine.is_alive = EngineClosedError("gone"), False
        watch.until(lambda event: event["engine"]["status"] == "ended")


def test_viewers_do_not_hold_up_the_end() -> None:
    with running_server() as server, watching(server) as watch:
        watch.next()
        with asked(server, "last"):
            server.app.service.draining = True
            watch.until(lambda event: event["engine"]["status"] == "draining")
        while watch.next() is not None:
            pass


def test_a_slow_viewer_misses_looks_but_no_samples() -> None:
    viewer = Viewer("", [Sample(0.0, 0.0, None, 0, 0, 0.0)])
    for at in range(1, 50):
        sample = Sample(float(at), 0.0, None, 0, 0, 0.0)
        viewer.tell(Event(b"", [sample], [], 0))  # type: ignore[arg-type]
    assert len(viewer._events) == 3
    assert [s.at for event in viewer._events for s in event.samples] == [*map(float, range(50))]


def test_cancelling(server: RunningServer) -> None:
    with asked(server, "first") as answers, asked(server, "second") as others:
        listed = server.request("GET", "/requests").json["data"]
        assert {request["id"] for request in listed} == {"first", "second"}
        assert server.request("DELETE", "/requests/first").json == {"id": "first", "cancelled": 1}
        wait_until(lambda: bool(answers))
        assert not others
    (answer,) = answers
    assert (answer.status, answer.error["code"]) == (499, "cancelled")
    assert others[0].status == 200
    assert server.engine.aborted == 1
    missing = server.request("DELETE", "/requests/first")
    assert (missing.status, missing.error["code"]) == (404, "request_not_found")


def test_cancelling_a_stream(server: RunningServer) -> None:
    with asked(server, "streamed", stream=True) as answers:
        wait_until(lambda: server.engine.taken > 2)
        assert server.request("DELETE", "/requests/streamed").status == 200
    last = answers[0].body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"


def test_clients_do_not_try_again(server: RunningServer) -> None:
    server.engine.endless, server.engine.pause = True, 0.05
    server.engine.info.max_model_len = 10**6

    def cancel() -> None:
        wait_until(lambda: bool(server.app.service.requests.generating))
        (one,) = server.app.service.requests.generating
        assert server.request("DELETE", f"/requests/{one.id}").status == 200

    thread = threading.Thread(target=cancel)
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        thread.start()
        with pytest.raises(openai.APIStatusError, match="was cancelled"):
            client.completions.create(model="small", prompt="Hi", max_tokens=600)
    thread.join()
    assert len(server.engine.calls) == 1


def test_one_key_sees_and_ends_only_its_own() -> None:
    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    with running_server(api_keys=("a", "b")) as server:
        for method, path in (("GET", "/live"), ("GET", "/requests"), ("DELETE", "/requests/x")):
            assert server.request(method, path).status == 401
        with (
            asked(server, "x", key="a"),
            watching(server, "a") as own,
            watching(server, "b") as other,
        ):
            event = own.next()
            assert [request["id"] for request in event["requests"]] == ["x"]
            event = other.next()
            assert (event["requests"], event["others"]) == ([], 1)
            assert server.request("GET", "/requests", headers=bearer("b")).json == {"data": []}
            refused = server.request("DELETE", "/requests/x", headers=bearer("b"))
            assert refused.status == 404
            assert server.request("DELETE", "/requests/x", headers=bearer("a")).status == 200
