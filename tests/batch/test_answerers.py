"""Who answers: the endpoints over an engine, or a server that is asked."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from support.batches import request
from support.fake_async_engine import ANSWER, FakeAsyncEngine, RunningServer, running_server
from support.fake_openai import FakeOpenAI, serving

from ppinfer.batch import remote
from ppinfer.batch.lines import Asked, Response, parse
from ppinfer.batch.local import LocalAnswerer
from ppinfer.batch.remote import RemoteAnswerer
from ppinfer.errors import ConfigError, PPInferError, ServerError, StageError

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def asked(body: dict[str, Any], url: str = "/v1/completions") -> Asked:
    return parse(json.dumps(request("a", body=body, url=url)).encode())


def locally(engine: FakeAsyncEngine, *requests: Asked) -> list[Response]:
    async def work() -> list[Response]:
        answerer = LocalAnswerer(engine, ("small",))
        try:
            return [await answerer.answer(item) for item in requests]
        finally:
            answerer.close()

    return asyncio.run(work())


def remotely(url: str, *requests: Asked, patience: float = 60.0) -> list[Response]:
    async def work() -> list[Response]:
        async with RemoteAnswerer(url, None, timeout=60.0, patience=patience) as answerer:
            return [await answerer.answer(item) for item in requests]

    return asyncio.run(work())


REQUESTS = [
    asked(CHAT, "/v1/chat/completions"),
    asked({"prompt": ["a", "b"], "n": 2, "logprobs": 1, "max_tokens": 9, "model": "small"}),
    asked({"prompt": "a", "temperature": "hot"}),
    asked({"prompt": "a", "model": "other"}),
    asked({"prompt": "x " * 500}),
]


def test_both_give_the_same() -> None:
    def plain(response: Response) -> Any:
        body = json.loads(bytes(response.body))
        return response.status_code, {k: body[k] for k in body.keys() - {"id", "created"}}

    here = locally(FakeAsyncEngine(), *REQUESTS)
    with running_server() as server:
        there = remotely(server.url.removesuffix("/v1"), *REQUESTS)
    assert list(map(plain, here)) == list(map(plain, there))
    assert [response.status_code for response in here] == [200, 200, 400, 404, 400]
    assert json.loads(bytes(here[0].body))["choices"][0]["message"]["content"] == ANSWER
    assert all(response.request_id.startswith("req_") for response in here + there)
    assert not any(b"\n" in bytes(response.body) for response in here + there)


def test_an_engine_that_has_ended() -> None:
    engine = FakeAsyncEngine()
    engine.fail_at = (2, StageError("Stage 0 died.", 0))
    with pytest.raises(StageError):
        locally(engine, asked(CHAT, "/v1/chat/completions"))
    engine.fail_at = (2, PPInferError("A request's tokens could not be made text"))
    (response,) = locally(engine, asked(CHAT, "/v1/chat/completions"))
    assert response.status_code == 503
    assert engine.open_streams == 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.02)


def test_a_server_that_is_busy_is_asked_again(quick: None) -> None:
    with serving(FakeOpenAI(fail={0: 429, 1: 503, 2: 500})) as fake:
        (response,) = remotely(fake.url, asked({"prompt": "a", "max_tokens": 4}))
        assert (response.status_code, len(fake.asked)) == (500, 3)


def test_a_server_that_stays_away_ends_the_run(quick: None) -> None:
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"no answer for 0\.2 s"):
        remotely("http://127.0.0.1:9", asked({"prompt": "a"}), patience=0.2)
    with (
        serving(FakeOpenAI(fail=dict.fromkeys(range(99), 429))) as fake,
        pytest.raises(ServerError, match="answers with status 429"),
    ):
        remotely(fake.url, asked({"prompt": "a", "max_tokens": 4}), patience=0.2)
    assert time.monotonic() - started < 60


def test_a_key() -> None:
    with running_server(api_keys=("right",)) as server:
        with pytest.raises(ServerError, match="wants a key"):
            remotely(server.url.removesuffix("/v1"), REQUESTS[0])

        async def with_key(server: RunningServer) -> Response:
            root = server.url.removesuffix("/v1")
            async with RemoteAnswerer(root, "right", timeout=60.0) as answerer:
                return await answerer.answer(REQUESTS[0])

        assert asyncio.run(with_key(server)).status_code == 200


def test_a_key_that_no_header_can_hold() -> None:
    async def make() -> None:
        RemoteAnswerer("http://127.0.0.1:9", "a\nb", 1.0)

    with pytest.raises(ConfigError, match="no HTTP header can hold"):
        asyncio.run(make())
