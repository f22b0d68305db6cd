"""``ppinfer batch``: what it refuses, what it says, and that no end loses or doubles a line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.batches import outcomes, request, write_batch
from support.checkpoints import make_model, random_ids, save_model
from support.fake_async_engine import FakeAsyncEngine, running_server
from support.fake_engine import run
from support.processes import Marked

from ppinfer.engine import async_engine

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
LINES = [request("a", url="/v1/chat/completions", body=CHAT), request("b"), "{", request("c")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_batch(tmp_path / "in.jsonl", LINES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The engines that would be brought up."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Engine(FakeAsyncEngine):
        async def __aenter__(self) -> Engine:
            return self

        async def __aexit__(self, *_: object) -> None:
            await self.close()

        @classmethod
        async def create(cls, model: str, *, progress: Any, **settings: Any) -> Engine:
            calls.append((model, settings))
            engine = cls()
            engine.info.notes = ["a note"]
            return engine

    monkeypatch.setattr(async_engine, "AsyncPPInferEngine", Engine)
    return calls


def test_a_model_here(made: list[Any], source: Path, target: Path) -> None:
    done = run("batch", str(source), str(target), "--model", "some/id", "-pp", "2", "--json")
    assert done.exit_code == 0, done.output
    assert made == [("some/id", {"pp_size": 2})]
    figures = json.loads(done.stdout)
    assert {name: figures[name] for name in ("requests", "succeeded", "invalid")} == {
        "requests": 4, "succeeded": 3, "invalid": 1,
    }  # fmt: skip
    assert "ppinfer: note: a note\n" in done.stderr
    assert "ppinfer: 3 requests answered, 1 no requests | " in done.stderr
    answer = outcomes(target)[1]["response"]["body"]
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("some/id", 3)
    again = run("batch", str(source), str(target), "--model", "some/id")
    assert again.stderr == "ppinfer: 0 requests answered, 4 done before\n"
    assert again.stdout == ""
    assert len(made) == 1  # nothing was left to do


def test_names(made: list[Any], tmp_path: Path, target: Path) -> None:
    lines = [request(name, body={"prompt": "x", "model": name}) for name in ("a", "b", "c")]
    source = write_batch(tmp_path / "in.jsonl", lines)
    arguments = ("--served-model-name", "a", "--served-model-name", "b", "--quiet")
    done = run("batch", str(source), str(target), "-m", "x", *arguments)
    assert (done.exit_code, done.stderr, done.stdout) == (0, "", "")
    statuses = [line["response"]["status_code"] for _, line in sorted(outcomes(target).items())]
    assert statuses == [200, 200, 404]


def test_a_server(source: Path, target: Path) -> None:
    with running_server(api_keys=("right",)) as server:
        wrong = run("batch", str(source), str(target), "--url", server.url, "--api-key", "wrong")
        assert wrong.exit_code == 1
        assert "wants a key" in wrong.stderr
        assert "4 requests are done; the same command goes on from there" in wrong.stderr
        right = run(
            "batch", str(source), str(target), "--url", server.url, "--api-key", "right",
            "--in-flight", "2",
        )  # fmt: skip
        assert right.exit_code == 0, right.stderr
        assert len(server.engine.calls) == 3
    assert sorted(outcomes(target)) == [1, 2, 3, 4]


def test_refused(made: list[Any], source: Path, target: Path) -> None:
    for arguments, words in [
        ((), "either --model or --url"), (("-m", "x", "--url", "y"), "either --model or --url"),
        (("--url", "127.0.0.1:9", "-pp", "2"), "settings of a model have no effect"),
        (("--url", "ftp://x"), "expected a server's address"), (("-m", "x", "-pp", "0"), "pp_size"),
        (("-m", "x", "--in-flight", "0"), "in-flight"),
    ]:  # fmt: skip
        done = run("batch", str(source), str(target), *arguments)
        assert (done.exit_code in (1, 2), made) == (True, []), arguments
        assert words in done.stderr
    target.write_text("notes")
    assert run("batch", str(source), str(target), "-m", "x").exit_code == 1
    assert run("batch", str(source / "no"), str(target), "-m", "x").exit_code == 1
    assert target.read_text() == "notes"


@pytest.mark.slow
def test_killed_and_started_again(made: list[Any], tmp_path: Path, target: Path) -> None:
    """A real engine at work, by SIGTERM and by SIGKILL: every line once, nothing left running."""
    folder = save_model(make_model("llama", max_position_embeddings=512), tmp_path / "model")
    lines = []
    for n, count in enumerate([60] * 30 + [500] * 270):  # it must not end before it is killed
        body = {"prompt": random_ids(5, n), "max_tokens": count, "seed": n, "ignore_eos": True}
        lines.append(request(f"r{n}", body=body))
    source = write_batch(tmp_path / "in.jsonl", lines)
    marked = Marked.new()
    command = [
        sys.executable, "-m", "ppinfer.cli", "batch", str(source), str(target),
        "--model", str(folder), "--in-flight", "4",
    ]  # fmt: skip
    before = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            command, env=marked.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while target.read_bytes().count(b"\n") < before + 10 if target.exists() else True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 143), err
        marked.assert_all_gone()
        before = target.read_bytes().count(b"\n")
        assert before < 300
        if number == signal.SIGKILL:
            with target.open("ab") as file:
                file.write(b'{"id":"batch_req_1')  # as if in the middle of a line
        else:
            assert b"of 300 requests are done; the same command goes on" in err
    done = run("batch", str(source), str(target), "-m", "x", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["done_before"] == before
    found = outcomes(target)
    assert sorted(found) == list(range(1, 301))
    for number, line in found.items():
        assert line["custom_id"] == f"r{number - 1}"
        assert line["response"]["body"]["usage"]["prompt_tokens"] == 5
