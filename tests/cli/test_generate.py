"""``ppinfer generate`` against a fake engine: where prompts come from, what is printed where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine, run

from ppinfer.cli import terminal
from ppinfer.cli.prompts import collect
from ppinfer.sampling import SamplingParams

Engine = type[FakeEngine]


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


class TestOutput:
    def test_one_prompt(self, engine: Engine) -> None:
        result = run("generate", "m", "a b c")
        assert result.exit_code == 0
        assert result.stdout == " A B C\n"
        assert result.stderr == "ppinfer: 3 tokens in 1.00 s = 3.0 tokens/s\n"
        assert engine.made[0].closed

    def test_several_in_input_order(self, engine: Engine) -> None:
        result = run("generate", "m", "a b", "c", "x " * 99)
        assert result.stdout.startswith("==> 1: a b <==\n A B\n\n==> 2: c <==\n C\n\n==> 3: x x")
        assert max(map(len, result.stdout.splitlines()[:7])) < 90

    def test_json(self, engine: Engine) -> None:
        result = run("generate", "m", "a b", "ü", "--json")
        assert rows(result.stdout) == [
            {
                "index": 0,
                "prompt": "a b",
                "text": " A B",
                "token_ids": [0, 1],
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "prompt": "ü",
                "text": " Ü",
                "token_ids": [0],
                "finish_reason": "stop",
            },
        ]
        assert "Ü" in result.stdout

    def test_logprobs(self, engine: Engine) -> None:
        result = run("generate", "m", "a", "--json", "--logprobs", "2")
        top = [{"token_id": 0, "logprob": -0.5}, {"token_id": 9, "logprob": -1.0}]
        assert rows(result.stdout)[0]["logprobs"] == [{"token_id": 0, "logprob": None, "top": top}]
        result = run("generate", "m", "a", "--logprobs", "2")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "ppinfer: error: --logprobs shows in JSON only; add --json.\n"

    def test_prompt_logprobs(self, engine: Engine) -> None:
        result = run("generate", "m", "a b", "--json", "--prompt-logprobs", "1")
        assert rows(result.stdout)[0]["prompt_logprobs"] == [
            None,
            {
                "token_id": 7,
                "logprob": -2.0,
                "top": [{"token_id": 5, "logprob": -0.5}],
                "is_greedy": False,
            },
        ]
        result = run("generate", "m", "a", "--prompt-logprobs", "0", "--max-tokens", "0")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--prompt-logprobs shows in JSON only" in result.stderr

    def test_notes_and_quiet(self, engine: Engine) -> None:
        lines = run("generate", "noted", "a").stderr.splitlines()
        assert lines[0] == "ppinfer: note: a note"
        assert lines[-2] == "ppinfer: chosen: one thing | another"
        assert run("generate", "noted", "a", "--quiet").stderr == ""

    def test_a_rank_that_only_serves(self, engine: Engine) -> None:
        """Under torchrun all ranks run the command, and rank 0 speaks."""
        result = run("generate", "follower", "a")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")

    def test_escapes_never_reach_a_terminal(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = "a\x1b[2Jb\x07\x9b1m\tc\n"
        terminal.write(text)
        assert capsys.readouterr().out == text
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        terminal.write(text)
        assert capsys.readouterr().out == "a␛[2Jb␇\ufffd1m\tc\n"


class TestPrompts:
    def test_from_a_text_file(self, engine: Engine, tmp_path: Path) -> None:
        file = tmp_path / "prompts.txt"
        file.write_bytes("\ufeffone\r\n\n  two \u2028 x\nthree".encode())
        run("generate", "m", "zero", "--prompts-file", str(file))
        assert engine.made[0].calls[0][0] == ["zero", "one", "  two \u2028 x", "three"]

    def test_from_a_jsonl_file(self, engine: Engine, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        messages = [{"role": "user", "content": "hi there"}]
        lines = [{"prompt": "a"}, {"messages": messages}, {"prompt": [5, 6], "id": 3}]
        file.write_text("\n".join(map(json.dumps, lines[:2])))
        result = run("generate", "m", "--prompts-file", str(file), "--chat", "--json")
        as_chat = [{"role": "user", "content": "a"}]
        assert engine.made[0].calls[0][0] == [as_chat, messages]
        assert [row["prompt"] for row in rows(result.stdout)] == ["a", messages]
        result = run("generate", "m", "--prompts-file", str(file))
        assert "==> 2: hi there <==" in result.stdout
        file.write_text(json.dumps(lines[2]))
        collected = collect([], file, chat=True)
        assert collected[0].prompt == [5, 6]
        assert collected[0].title == "[5, 6]"

    def test_from_standard_input(self, engine: Engine) -> None:
        run("generate", "m", stdin="one\ntwo\n")
        assert engine.made[0].calls[0][0] == ["one", "two"]
        run("generate", "m", "given", stdin="not read")
        assert engine.made[1].calls[0][0] == ["given"]

    def test_none(self, engine: Engine) -> None:
        result = run("generate", "m", stdin="\n")
        assert result.exit_code == 2
        assert "There is no prompt" in result.stderr
        assert not engine.made

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "line 1 is no JSON"),
            (b'{"prompt": "a"}\n[]', 'line 2 must be an object with either "prompt"'),
            (b'{"prompt": "a", "messages": []}', "line 1 must be an object"),
            (b'{"prompt": 5}', "must give text or a list, not int"),
            (b"[" * 100_000, "line 1 is no JSON"),
            (b"\xff", "is not UTF-8 text (byte 0)"),
        ],
    )
    def test_bad_files(self, engine: Engine, tmp_path: Path, content: bytes, message: str) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_bytes(content)
        result = run("generate", "m", "--prompts-file", str(file))
        assert result.exit_code == 1
        assert result.stderr.startswith("ppinfer: error: ")
        assert message in result.stderr
        assert not engine.made

    def test_missing_file(self, engine: Engine, tmp_path: Path) -> None:
        result = run("generate", "m", "--prompts-file", str(tmp_path / "none"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "cannot be read: No such file" in result.stderr


class TestSettings:
    def test_only_what_was_given_is_passed(self, engine: Engine) -> None:
        run("generate", "m", "a")
        assert engine.made[0].settings == {}
        assert engine.made[0].calls[0][1] == SamplingParams()

    def test_engine_settings(self, engine: Engine) -> None:
        run(
            *("generate", "m", "a", "-pp", "2", "--dtype", "bf16", "--kv-cache-memory", "2GB"),
            *("--partition", "17,13", "--no-prefix-caching", "--timeout", "5"),
        )
        assert engine.made[0].settings == {
            "pp_size": 2,
            "dtype": "bf16",
            "kv_cache_memory": "2GB",
            "partition": "17,13",
            "prefix_caching": False,
            "timeout": 5.0,
        }

    def test_sampling(self, engine: Engine) -> None:
        run(
            *("generate", "m", "a", "--max-tokens", "5", "--temperature", "0.5", "--seed", "0"),
            *("--stop", "x", "--stop", "y", "--ignore-eos", "--stop-token-ids", "7"),
        )
        assert engine.made[0].calls[0][1] == SamplingParams(
            max_tokens=5,
            temperature=0.5,
            seed=0,
            stop=("x", "y"),
            ignore_eos=True,
            stop_token_ids=(7,),
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--dtype", "fp99"), "dtype must be one of auto, fp32, bf16, fp16, not 'fp99'."),
            (("-pp", "0"), "pp_size must be a whole number of at least 1, not 0."),
            (("-pp", "3", "--partition", "1,2"), "partition [1, 2] names 2 stages"),
            (("--kv-cache-memory", "lots"), "a memory size must be"),
            (("--temperature", "-1"), "temperature must be at least 0, not -1.0."),
            (("--temperature", "nan"), "temperature must be at least 0, not nan."),
            (("--stop", ""), "stop must hold strings that are not empty"),
        ],
    )
    def test_bad_values(self, engine: Engine, arguments: tuple[str, ...], message: str) -> None:
        result = run("generate", "m", "a", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("ppinfer: error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

    def test_a_request_that_is_refused(self, engine: Engine) -> None:
        result = run("generate", "m", "refuse")
        assert result.exit_code == 1
        assert result.stderr == "ppinfer: error: The prompt is refused.\n"
        assert engine.made[0].closed

    def test_interrupt(self, engine: Engine) -> None:
        result = run("generate", "m", "a interrupt b")
        assert result.exit_code == 130
        assert result.stdout == " A"
        assert engine.made[0].closed

    @pytest.mark.parametrize("arguments", [("--nonsense",), ("--max-tokens", "many"), ("--seed",)])
    def test_usage(self, engine: Engine, arguments: tuple[str, ...]) -> None:
        assert run("generate", "m", "a", *arguments).exit_code == 2
        assert run("generate").exit_code == 2
