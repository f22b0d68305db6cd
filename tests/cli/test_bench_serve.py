"""``ppinfer bench serve`` from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fake_openai import FakeOpenAI, serving
from support.processes import Marked, run_cli, run_python

from ppinfer.cli.bench_output import without_keys

pytestmark = pytest.mark.slow


def test_results_go_to_files_and_standard_output(tmp_path: Path) -> None:
    stem, picture = tmp_path / "load", tmp_path / "load.png"
    with serving(FakeOpenAI(api_key="secret")) as fake:
        done = run_cli(
            "bench", "serve", fake.url + "/v1/", "--rate", "50,inf", "--requests", "5",
            "--prompt-tokens", "16-30", "--output-tokens", "4", "--slo", "ttft=60s",
            "--api-key", "secret", "--json", "--output", str(stem), "--plot", str(picture),
        )  # fmt: skip
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert "secret" not in done.out
    assert [level["done"] for level in found["results"]["levels"]] == [5, 5]
    assert [level["good"] for level in found["results"]["levels"]] == [5, 5]
    assert json.loads(stem.with_suffix(".json").read_text()) == found
    assert "| inf | 5 | 0 |" in stem.with_suffix(".md").read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_keys_are_not_written_down() -> None:
    given = ["serve", "u", "--api-key", "a", "--api-key=b", "--rate", "1"]
    shown = ["serve", "u", "--api-key", "***", "--api-key=***", "--rate", "1"]
    assert without_keys(given) == shown


def test_people_get_tables(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three", "max_tokens": 5}\n')
    with serving(FakeOpenAI(fail={2: 503})) as fake:
        done = run_cli(
            "bench", "serve", fake.url, "--concurrency", "1,2", "--requests", "4",
            "--dataset", str(prompts), "--endpoint", "completions",
        )  # fmt: skip
    assert done.status == 0, done.err
    assert "2 at once" in done.out
    assert "1 failed, HTTP 503: not now" in done.out
    assert {body["prompt"] for body in fake.load} == {"one two three"}


def test_no_answer_at_all_is_a_failure() -> None:
    with serving(FakeOpenAI(fail=dict.fromkeys(range(9), 500))) as fake:
        done = run_cli("bench", "serve", fake.url, "--rate", "inf", "--requests", "2")
    assert done.status == 1
    assert "2 failed, HTTP 500" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:9"], "either --rate"),
        (["http://127.0.0.1:9", "--rate", "inf", "--seconds", "1"], "say how many"),
        (["http://127.0.0.1:9", "--rate", "1"], "Nobody answers at http://127.0.0.1:9"),
        (["ftp://x", "--rate", "1"], "expected a server's address"),
        (["http://127.0.0.1:9", "--rate", "1", "--slo", "fast"], "slo must be"),
        (["http://127.0.0.1:9", "--rate", "1", "--dataset", "./none"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(arguments: list[str], message: str) -> None:
    done = run_cli("bench", "serve", *arguments)
    assert done.status == 1
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_without_aiohttp_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['aiohttp'] = None; from ppinfer.cli import main; main()"
    done = run_python(code, "bench", "serve", "http://127.0.0.1:9", "--rate", "1")
    assert done.status == 1
    assert "pip install 'ppinfer[load]'" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reports_what_there_is(number: signal.Signals) -> None:
    marked = Marked.new()
    with serving(FakeOpenAI(delay=0.01)) as fake:
        command = [sys.executable, "-m", "ppinfer.cli", "bench", "serve", fake.url, "--json",
                   "--concurrency", "2,4", "--requests", "5000", "--output-tokens", "4",
                   "--prompt-tokens", "4"]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=marked.environment
        ) as program:
            deadline = time.monotonic() + 60
            while len(fake.load) < 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            program.send_signal(number)
            out, err = program.communicate(timeout=60)
        marked.assert_all_gone()
    assert b"Traceback" not in err
    if number == signal.SIGTERM:
        assert program.returncode == 143
        return
    assert program.returncode == 130
    results = json.loads(out)["results"]
    (level,) = results["levels"]
    assert results["interrupted"]
    assert level["done"] > 5
    assert level["cut_off"] == 2
