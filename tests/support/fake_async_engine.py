"""A scripted engine for the server, and a server with it in a thread of this process."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from support.fake_state import FakeStages, fake_state
from support.small_tokenizers import CHATML, train_byte_level

from ppinfer.engine.detokenizer import Detokenizer
from ppinfer.engine.state import EngineState, LiveState, SequenceState
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.request import PromptTokenLogprobs, RequestDelta, TokenLogprobs
from ppinfer.sampling import SamplingParams
from ppinfer.server.app import App
from ppinfer.server.run import HttpServer, listen
from ppinfer.server.service import Service
from ppinfer.server.settings import ServerSettings

ANSWER = "The quick brown fox — 今日は 🙂 jumps"


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return Tokenizer(train_byte_level(), special_tokens=special, chat_template=CHATML)


@dataclass
class FakeInfo:
    max_model_len: int = 100
    vocab_size: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Call:
    ids: list[int]
    params: SamplingParams
    priority: int
    salt: str
    streamed: bool


class FakeAsyncEngine:
    """Answers every prompt with ``ANSWER``, a token a delta, and then the end of sequence.

    Attributes:
        answer: what is said in place of ``ANSWER``.
        pause: seconds before each delta.
        fail_at: what to raise at which delta; -1 raises when the stream is made.
        endless: the answer is repeated for ever.
        held_at: after so many tokens a stream goes no further until this is changed.
        state_error: what is raised instead of a state.
        silent_for: seconds that the last stage has said nothing.
        stages: what they do, for who watches.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, **info: Any) -> None:
        self.tokenizer: Tokenizer | None = tokenizer or small_tokenizer()
        assert self.tokenizer is not None
        self.info = FakeInfo(**info)
        self.info.vocab_size = self.tokenizer.vocab_size
        self.is_alive = True
        self.calls: list[Call] = []
        self.open_streams = self.aborted = self.taken = 0
        self.answer = ANSWER
        self.pause = 0.0
        self.endless = False
        self.held_at: int | None = None
        self.fail_at: tuple[int, Exception] | None = None
        self.check_error: Exception | None = None
        self.state_error: Exception | None = None
        self.state_fields: dict[str, Any] = {}
        self.silent_for = 0.0
        self.stages = FakeStages()
        self.streams: dict[int, FakeStream] = {}
        self.closed = False

    def stream(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        streamed: bool = True,
    ) -> FakeStream:
        if self.fail_at is not None and self.fail_at[0] < 0:
            raise self.fail_at[1]
        self.calls.append(Call(list(prompt_token_ids), params, priority, salt, streamed))
        self.open_streams += 1
        stream = FakeStream(self, list(prompt_token_ids), params, len(self.calls))
        self.streams[stream.seq_id] = stream
        return stream

    async def check(self, timeout: float) -> None:
        if self.check_error is not None:
            raise self.check_error

    async def state(self) -> EngineState:
        if self.state_error is not None:
            raise self.state_error
        now = time.monotonic()
        sequences = [
            SequenceState(
                one.seq_id, "decode" if one.sent else "prefill", now - one.since,
                one.prompt_tokens, one.sent,
            )
            for one in self.streams.values()
        ]  # fmt: skip
        return fake_state(sequences, self.taken, self.silent_for, **self.state_fields)

    async def live(self) -> LiveState:
        return self.stages.live(await self.state())

    def look_away(self) -> None:
        self.stages.looked_away += 1

    async def close(self) -> None:
        self.closed = True


class FakeStream:
    def __init__(
        self, engine: FakeAsyncEngine, prompt: list[int], params: SamplingParams, seq_id: int
    ) -> None:
        self._engine, self._prompt, self._params = engine, prompt, params
        self.seq_id, self.prompt_tokens, self.since = seq_id, len(prompt), time.monotonic()
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode(engine.answer)
        self._script = [*ids, *sorted(engine.tokenizer.eos_token_ids)]
        self._decoder = Detokenizer(engine.tokenizer, params.stop)
        self.sent = 0
        self._done = self._closed = False

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> RequestDelta:
        await asyncio.sleep(self._engine.pause)
        while self.sent == self._engine.held_at:
            await asyncio.sleep(0.005)
        if self._done or self._closed:
            raise StopAsyncIteration
        fail = self._engine.fail_at
        if fail is not None and self.sent == fail[0]:
            raise fail[1]
        return self._delta()

    def _scores(self) -> list[PromptTokenLogprobs | None] | None:
        """Token ``i`` of a prompt has the log-probability ``-i / 8``."""
        top = self._params.prompt_logprobs
        if top is None:
            return None
        return [None] + [
            PromptTokenLogprobs(token, -i / 8, {t: -float(t + 1) for t in range(top)}, i % 2 == 1)
            for i, token in enumerate(self._prompt[1:], start=1)
        ]

    def _delta(self) -> RequestDelta:
        if self._params.max_tokens == 0:
            self._done = True
            return RequestDelta(0, "", [], "length", None, self._scores())
        prompt = None if self.sent else self._scores()
        length = len(self._script) - (1 if self._engine.endless else 0)
        token = self._script[self.sent % length]
        self.sent += 1
        self._engine.taken += 1
        text, reason = self._decoder.push(token), None
        if self._decoder.stop_string is not None or (
            self.sent >= length and not self._engine.endless
        ):
            reason = "stop"
        elif self.sent == self._params.max_tokens:
            reason = "length"
        if reason is not None:
            self._done = True
            text += self._decoder.finish()
        logprobs = None
        if self._params.logprobs is not None:
            top = {t: -float(t + 1) for t in range(self._params.logprobs)}
            logprobs = [TokenLogprobs(token, -0.5 if token else float("-inf"), top)]
        return RequestDelta(0, text, [token], reason, logprobs, prompt)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.open_streams -= 1
            del self._engine.streams[self.seq_id]
            self._engine.aborted += not self._done


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"]
        assert isinstance(found, dict)
        return found

    @property
    def events(self) -> list[Any]:
        """Server-sent events; ``[DONE]`` must be the last and is left out."""
        lines = self.body.decode().split("\n\n")
        assert lines[-1] == ""
        assert all(line.startswith("data: ") for line in lines[:-1])
        data = [line.removeprefix("data: ") for line in lines[:-1]]
        assert data[-1] == "[DONE]"
        return [json.loads(item) for item in data[:-1]]


@dataclass
class RunningServer:
    app: App
    engine: FakeAsyncEngine
    port: int
    server: HttpServer
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """``body`` is sent as it is if it is bytes, else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, body, given | (headers or {}))
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())
        finally:
            connection.close()

    def chat(self, text: str = "Hi", **fields: Any) -> Answer:
        messages = [{"role": "user", "content": text}]
        return self.request("POST", "/v1/chat/completions", {"messages": messages} | fields)

    def complete(self, prompt: Any = "Hi", **fields: Any) -> Answer:
        return self.request("POST", "/v1/completions", {"prompt": prompt} | fields)

    def idle(self) -> None:
        """Wait until nothing of any request is left."""
        wait_until(lambda: not self.engine.open_streams and not self.app.service.places.taken)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


@contextmanager
def running_server(
    engine: FakeAsyncEngine | None = None, load: bool = True, port: int = 0, **settings: Any
) -> Iterator[RunningServer]:
    """A server, on a free port by default; with ``load=False``, its model is still to come."""
    engine = engine or FakeAsyncEngine()
    listener = listen("127.0.0.1", port)
    port = listener.getsockname()[1]
    started = threading.Event()
    made: list[RunningServer] = []

    async def run() -> None:
        app = App(Service(ServerSettings(**({"model_names": ("small",)} | settings))))
        if load:
            app.service.open(engine)
        server = HttpServer(app)
        made.append(RunningServer(app, engine, port, server, asyncio.get_running_loop()))
        started.set()
        await server.serve(sockets=[listener])
        app.service.texts.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(30)
    try:
        yield made[0]
        made[0].idle()
    finally:
        made[0].server.should_exit = made[0].server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()
