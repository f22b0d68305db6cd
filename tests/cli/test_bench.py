"""``ppinfer bench`` from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import Marked, run_cli

pytestmark = pytest.mark.slow
TOY = ["toy", "--shapes", "2x8x4", "--repeats", "1", "--dtypes", "fp32", "--no-hf"]


def test_results_go_to_files_and_standard_output(tmp_path: Path) -> None:
    stem, picture = tmp_path / "speed", tmp_path / "speed.png"
    done = run_cli(
        "bench", "throughput", *TOY, "--json", "--output", str(stem), "--plot", str(picture)
    )
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["benchmark"] == "throughput"
    assert found["conditions"]["cores"] >= 1
    (comparison,) = found["results"]
    assert [cell["status"] for cell in comparison["cells"]] == ["ok"] * 2
    assert json.loads(stem.with_suffix(".json").read_text()) == found
    assert "| 2 stages |" in stem.with_suffix(".md").read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_latency_and_contexts(tmp_path: Path) -> None:
    done = run_cli(
        "bench", "latency", "toy", "--prompts", "8", "--new", "4", "--contexts", "32,64",
        "--repeats", "1", "--no-hf", "--plot", str(tmp_path / "a.png"),
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "one request at a time" in done.out
    assert "more for each 1,000 tokens of context" in " ".join(done.out.split())


def test_scaling_and_loading() -> None:
    done = run_cli(
        "bench", "scaling", "toy", "--shape", "4x8x4", "--pp-sizes", "1,2",
        "--micro-batches", "auto,2", "--repeats", "1", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    cells = json.loads(done.out)["results"]["cells"]
    assert [(cell["stages"], cell["micro_batches"]) for cell in cells] == [
        (stages, count) for stages in (1, 2) for count in (None, 2)
    ]
    done = run_cli("bench", "loading", "--layers", "1", "-pp", "1", "--repeats", "1")
    assert done.status == 0, done.err
    assert "Loading against model size" in done.out


def test_invariance_has_a_price_for_every_number_of_rows() -> None:
    done = run_cli("bench", "invariance", "toy", "--rows", "1,4", "--repeats", "2", "--json")
    assert done.status == 0, done.err
    prices = json.loads(done.out)["results"]
    assert {(price["dtype"], price["rows"]) for price in prices} == {
        (dtype, rows) for dtype in ("bf16", "fp32") for rows in (1, 4)
    }
    for price in prices:
        assert "F.linear" in price["free"]
        assert all(len(times) == 2 for times in (price["own"], *price["free"].values()))


def test_driver(tmp_path: Path) -> None:
    done = run_cli(
        "bench", "driver", "toy", "--sequences", "4", "--new", "8", "--repeats", "1", "--json",
        "--output", str(tmp_path / "driver"),
    )  # fmt: skip
    assert done.status == 0, done.err
    cells = json.loads(done.out)["results"]
    assert [(cell["sequences"], cell["micro_batches"], cell["swept"]) for cell in cells] == [
        (4, slots, swept) for slots in (1, 2) for swept in (False, True)
    ]
    assert "| 4 in 2 | swept |" in (tmp_path / "driver.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["throughput", "toy", "--shapes", "8"], "such as 8x128x64"),
        (["throughput", "toy", "--dtypes", "fp64"], "dtypes must be"),
        (["throughput", "./nothing"], "llama-13b, llama-405b, llama-70b, llama-7b, toy"),
        (["throughput", "toy", "--comm", "pigeon"], "comm must be one of"),
        (["throughput", "toy", "--output", "./no/such/folder"], "There is no folder"),
        (["comm", "--stages", "1"], "at least 2 stages"),
        (["latency", "toy", "--dtype", "bf16,fp32"], "Give one dtype"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: list[str], message: str) -> None:
    done = run_cli("bench", *arguments)
    assert done.status == 1
    assert message in done.err
    assert done.out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(number: signal.Signals) -> None:
    marked = Marked.new()
    command = [sys.executable, "-m", "ppinfer.cli", "bench", "latency", "toy", "--no-hf",
               "--prompts", "8", "--new", "4000", "-pp", "2"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=marked.environment
    ) as program:
        deadline = time.monotonic() + 60
        while len(marked.processes()) < 4:  # the command, a worker, two stages
            assert time.monotonic() < deadline
            time.sleep(0.1)
        program.send_signal(number)
        status = program.wait(timeout=60)
        marked.assert_all_gone()
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
