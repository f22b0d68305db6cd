"""``ppinfer chat`` against a fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.fake_engine import FakeEngine, run

from ppinfer.cli.chat import _Conversation, _engine_answers
from ppinfer.sampling import SamplingParams

Engine = type[FakeEngine]


class TestPiped:
    def test_a_turn_a_line(self, engine: Engine) -> None:
        result = run("chat", "m", "--system", "be brief", stdin="one\n\ntwo words\n")
        assert result.exit_code == 0
        assert result.stdout == " ONE\n TWO WORDS\n"
        assert result.stderr == ""
        system = {"role": "system", "content": "be brief"}
        first = [system, {"role": "user", "content": "one"}]
        answer = {"role": "assistant", "content": " ONE"}
        second = [*first, answer, {"role": "user", "content": "two words"}]
        assert [prompts for prompts, _ in engine.made[0].calls] == [[first], [second]]
        assert engine.made[0].closed

    def test_commands(self, engine: Engine) -> None:
        result = run("chat", "m", stdin="one\n/reset\ntwo\n/exit\nthree\n")
        assert result.stdout == " ONE\n TWO\n"
        assert engine.made[0].calls[1][0] == [[{"role": "user", "content": "two"}]]

    def test_answers_may_be_longer_than_continuations(self, engine: Engine) -> None:
        run("chat", "m", stdin="a\n")
        run("chat", "m", "--max-tokens", "5", "--top-k", "3", stdin="a\n")
        params = [made.calls[0][1] for made in engine.made]
        assert params == [SamplingParams(max_tokens=512), SamplingParams(max_tokens=5, top_k=3)]

    def test_errors(self, engine: Engine) -> None:
        result = run("chat", "m", stdin="refuse\na\n")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "ppinfer: error: The prompt is refused.\n"
        assert run("chat", "m", stdin="a interrupt\n").exit_code == 130


class TestInteractive:
    @pytest.fixture
    def talk(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeEngine]:
        def talk(*typed: str | type[BaseException]) -> FakeEngine:
            lines: Iterator[str | type[BaseException]] = iter([*typed, EOFError])

            def read(prompt: str = "") -> str:
                line = next(lines)
                if isinstance(line, str):
                    return line
                raise line

            monkeypatch.setattr("builtins.input", read)
            with _engine_answers("m", SamplingParams(), {}, None) as answers:
                _Conversation(answers, None, interactive=True).run()
            return engine.made[0]

        return talk

    def test_ctrl_c_stops_the_answer_and_keeps_what_came(
        self, talk: Callable[..., FakeEngine], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = talk("a interrupt b", "c")
        assert capsys.readouterr().out == " A\n C\n\n"
        assert fake.calls[1][0][0][1] == {"role": "assistant", "content": " A"}

    def test_ctrl_c_at_the_prompt_does_not_leave(
        self, talk: Callable[..., FakeEngine], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert len(talk(KeyboardInterrupt, "a").calls) == 1
        assert "Ctrl-D or /exit leaves." in capsys.readouterr().err

    def test_a_refused_turn_is_taken_back(
        self, talk: Callable[..., FakeEngine], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = talk("refuse", "a")
        assert fake.calls[1][0] == [[{"role": "user", "content": "a"}]]
        assert "ppinfer: error: The prompt is" in capsys.readouterr().err

    def test_commands(
        self, talk: Callable[..., FakeEngine], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = talk("/help", "a", "/reset", "/etc is a folder", "/exit", "b")
        assert [call[0] for call in fake.calls] == [
            [[{"role": "user", "content": "a"}]],
            [[{"role": "user", "content": "/etc is a folder"}]],
        ]
        err = capsys.readouterr().err
        assert "/reset forgets" in err
        assert "is forgotten" in err
