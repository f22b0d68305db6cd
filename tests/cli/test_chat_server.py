"""``ppinfer chat --url`` with servers of several manners."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.fake_async_engine import ANSWER, FakeAsyncEngine, RunningServer, running_server
from support.fake_engine import run
from support.fake_openai import FakeOpenAI, serving

from ppinfer.cli import chat
from ppinfer.cli.chat import _Conversation
from ppinfer.cli.chat_server import server_answers
from ppinfer.errors import StageError

FEW = ("--max-tokens", "3")


@pytest.fixture(scope="module")
def one_server() -> Iterator[RunningServer]:
    with running_server(api_keys=("right",)) as server:
        yield server


@pytest.fixture
def server(one_server: RunningServer) -> Iterator[RunningServer]:
    one_server.engine = FakeAsyncEngine()
    one_server.app.service.open(one_server.engine)
    yield one_server
    one_server.idle()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, even where whoever started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def said(error: str) -> str:
    """What a failed command said: one sentence."""
    assert error.startswith("ppinfer: error: ")
    assert error.count("\n") == 1
    return error


class TestPiped:
    @pytest.mark.parametrize(
        "manners",
        [
            {},
            {"piece": 3, "line_end": b"\r\n"},
            {"like_transformers": True, "tokenize": False},
        ],
    )
    def test_a_conversation(self, manners: Any) -> None:
        with serving(FakeOpenAI(**manners)) as fake:
            result = run(
                "chat", "--url", fake.url + "/v1", "--system", "be brief", *FEW,
                stdin="one\n\ntwo\n/reset\nthree\n/exit\nfour\n",
            )  # fmt: skip
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == " 0 1 2\n" * 3
        system = {"role": "system", "content": "be brief"}
        one, two, three = ({"role": "user", "content": word} for word in ("one", "two", "three"))
        answer = {"role": "assistant", "content": " 0 1 2"}
        assert [body["messages"] for body in fake.asked] == [
            [system, one], [system, one, answer, two], [system, three],
        ]  # fmt: skip

    def test_fields(self) -> None:
        with serving(FakeOpenAI()) as fake:
            run("chat", "--url", fake.url, stdin="a\n")
            run(
                "chat", "--url", fake.url, "--model", "other", *FEW, "--temperature", "0.5",
                "--top-k", "4", "--stop", "x", "--stop", "y", "--logit-bias", "7=-2", "--seed", "3",
                "--ignore-eos", stdin="a\n",
            )  # fmt: skip
        always = {"messages": [{"role": "user", "content": "a"}], "stream": True}
        assert fake.asked == [
            {"model": "numbers", "max_tokens": 512, "temperature": 0.0} | always,
            {
                "model": "other", "max_tokens": 3, "temperature": 0.5, "top_k": 4,
                "stop": ["x", "y"], "logit_bias": {"7": -2.0}, "seed": 3, "ignore_eos": True,
            } | always,
        ]  # fmt: skip

    def test_our_own_server(self, server: RunningServer) -> None:
        result = run("chat", "--url", server.url, "--api-key", "right", stdin="a\n")
        assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
        result = run("chat", "--url", server.url, "--api-key", "right", "--top-p", "0.5",
                     "--max-tokens", "5", stdin="a\n")  # fmt: skip
        assert ANSWER.startswith(result.stdout.rstrip("\n"))
        assert server.engine.calls[-1].params.top_p == 0.5


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Give either MODEL or --url."),
            (["m", "--url", "x"], "Give either MODEL or --url."),
            (["--url", "x", "-pp", "2"], "have no effect"),
            (["--url", "x", "--trace", "t.json"], "have no effect"),
            (["m", "--model", "x"], "needs --url"),
        ],
    )
    def test_usage(self, arguments: list[str], message: str) -> None:
        result = run("chat", *arguments)
        assert result.exit_code == 2
        assert message in said(result.stderr)

    @pytest.mark.parametrize(
        ("behaviour", "options", "message"),
        [
            ({"models": ("a", "b")}, [], "has 2 models (a, b): choose with --model."),
            ({"models": ()}, [], "names no model"),
            ({"api_key": "right"}, ["--api-key", "wrong"], "wants a key (wrong key)"),
            ({}, ["--api-key", "a\nb"], "no HTTP header can hold"),
            ({"fail": {0: 503}}, [], "answers with status 503: not now."),
            ({"unknown": ("top_k",), "like_transformers": True}, ["--top-k", "3"],
             "answers with status 422: unknown field top_k."),
        ],
    )  # fmt: skip
    def test_servers(self, behaviour: Any, options: list[str], message: str) -> None:
        with serving(FakeOpenAI(**behaviour)) as fake:
            result = run("chat", "--url", fake.url, *FEW, *options, stdin="a\n")
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in said(result.stderr)

    def test_a_stream_that_is_cut(self) -> None:
        with serving(FakeOpenAI(cut=2)) as fake:
            result = run("chat", "--url", fake.url, *FEW, stdin="a\n")
        assert (result.exit_code, result.stdout) == (1, " 0 1\n")
        assert "broke off: the stream ended in the middle of an answer." in said(result.stderr)

    def test_a_server_that_goes(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In the middle of an answer, and before one: the conversation goes on without it."""
        with ExitStack() as stack:
            with serving(FakeOpenAI(vanish=2)) as fake:
                answers = stack.enter_context(
                    server_answers(fake.url, None, None, {"max_tokens": 3})
                )
                conversation = _Conversation(answers, None, interactive=True)
                conversation._take_turn("a")
            conversation._take_turn("b")
        assert conversation._messages == []
        middle, before = capsys.readouterr().err.splitlines()
        assert middle.endswith("broke off: the connection was closed too soon.")
        assert "cannot be reached: Connect" in before

    def test_nobody_there(self) -> None:
        with serving(FakeOpenAI()) as fake:
            pass
        result = run("chat", "--url", fake.url, stdin="a\n")
        assert "is the server running?" in said(result.stderr)

    def test_of_our_own_server(self, server: RunningServer) -> None:
        options = ("--url", server.url, "--api-key", "right")
        result = run("chat", *options, "--model", "gpt-9", stdin="a\n")
        assert "answers with status 404: There is no" in said(result.stderr)
        assert "(model 'gpt-9')." in result.stderr
        server.engine.fail_at = (3, StageError("Stage 0 died.", 0))
        result = run("chat", *options, stdin="a\n")
        assert "failed in the middle of its answer: " in said(result.stderr)
        assert ANSWER.startswith(result.stdout.rstrip("\n"))


class TestInteractive:
    def talk(self, monkeypatch: pytest.MonkeyPatch, url: str, key: str | None, *typed: str) -> None:
        lines = iter(typed)

        def read(prompt: str = "") -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        with server_answers(url, None, key, {"max_tokens": 3}) as answers:
            _Conversation(answers, None, interactive=True).run()

    @pytest.mark.usefixtures("ctrl_c")
    def test_ctrl_c_stops_the_answer_and_keeps_what_came(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.engine.held_at = 5
        written: list[str] = []

        def write(text: str) -> None:
            written.append(text)
            if len(written) == 2:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(chat, "write", write)
        url = server.url.removesuffix("/v1")
        with server_answers(url, None, "right", {"max_tokens": 90}) as answers:
            conversation = _Conversation(answers, None, interactive=True)
            conversation._take_turn("a")
            server.idle()
            assert server.engine.aborted == 1
            assert written[-1] == "\n"
            text = "".join(written[:-1])
            assert ANSWER.startswith(text)
            assert conversation._messages[-1] == {"role": "assistant", "content": text}
            server.engine.held_at = None
            conversation._take_turn("b")
            assert conversation._messages[-1]["content"] == ANSWER

    def test_a_turn_without_an_answer_is_taken_back(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with serving(FakeOpenAI(fail={0: 503})) as fake:
            self.talk(monkeypatch, fake.url, None, "a", "b")
        assert "answers with status 503" in capsys.readouterr().err
        assert fake.asked[1]["messages"] == [{"role": "user", "content": "b"}]
