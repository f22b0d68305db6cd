"""``ppinfer plan``, ``ppinfer simulate``, and plans that other commands take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_engine import FakeEngine, run

from ppinfer.trace.analysis import analyse
from ppinfer.trace.chrome import read_trace

ASK = ("llama-7b", "--devices", "a10:2", "--dtype", "fp16", "--requests", "8", "--new", "16")


def test_a_plan_for_people() -> None:
    result = run("plan", *ASK)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split()[0] in ("Yes:", "No:", "It")
    for words in ("predicted: ", "Stages", "Alternatives", "2 x 1 stage side by side", "0-15"):
        assert words in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory) -> Path:
    result = run("plan", *ASK, "--json")
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(result.stdout)
    return path


def test_a_plan_for_programs(plan_file: Path) -> None:
    found = json.loads(plan_file.read_text())
    assert found["settings"]["pp_size"] == 2
    assert sum(found["settings"]["partition"]) == 32
    assert found["settings"]["dtype"] == "fp16"
    assert found["pipeline"]["tokens_per_second"] > 0
    assert [stage["device"] for stage in found["pipeline"]["stages"]] == ["a10", "a10"]
    assert {each["what"] for each in found["alternatives"]} >= {"2 x 1 stage side by side"}


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_engines_take_a_plan(command: str, plan_file: Path, engine: type[FakeEngine]) -> None:
    planned = json.loads(plan_file.read_text())["settings"]
    prompt = ["hello"] if command == "generate" else []
    result = run(command, "toy", *prompt, "--plan", str(plan_file), "--dtype", "bf16", stdin="")
    assert result.exit_code == 0, result.stderr
    assert engine.made[0].settings == planned | {"dtype": "bf16"}


def test_a_bench_row_of_a_plan(plan_file: Path) -> None:
    from ppinfer.bench.cases import Shape, rows_of
    from ppinfer.cli.plan_file import read_settings

    *_, row = rows_of((1,), plan=read_settings(plan_file))
    settings = row.settings([Shape(8, 64, 16)])
    assert row.name == "as planned, 2 stages"
    assert settings["pp_size"] == 2
    assert sum(settings["partition"]) == 32
    assert "dtype" not in settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no plan"),
        ('{"settings": {}}', "is no plan"),
        ('{"ppinfer_plan": 9, "settings": {}}', "is a plan of format 9"),
        ('{"ppinfer_plan": 1, "settings": {"pp_sise": 2}}', "Unknown setting 'pp_sise'"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_plan(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    result = run("generate", "toy", "hello", "--plan", str(path))
    assert result.exit_code == 1
    assert words in result.stderr


def test_a_simulated_trace_is_a_trace(tmp_path: Path) -> None:
    trace, plot = tmp_path / "t.json", tmp_path / "t.png"
    result = run("simulate", *ASK, "--trace", str(trace), "--plot", str(plot), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    read = read_trace(trace)
    assert read.info == {"model": "llama-7b", "dtype": "fp16", "devices": "a10 (simulated)"}
    total = analyse(read).total
    assert total.seconds == pytest.approx(found["seconds"], rel=1e-3)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert run("timeline", str(trace)).exit_code == 0


def test_simulate_for_people() -> None:
    result = run("simulate", *ASK, "--num-micro-batches", "2", "--rate", "5")
    assert result.exit_code == 0, result.stderr
    assert "predicted: " in result.stdout
    assert "a10" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "a11:2"], "Unknown device 'a11'; did you mean a10?"),
        (["--devices", "a10:0"], "NAME:COUNT"),
        (["--devices", "a10:2", "--link", "string"], "Unknown link 'string'"),
        (["--devices", "a10:3", "--link", "pcie4,pcie4,pcie4"], "3 links were given for 3 devices"),
        (["--devices", "a10:2", "--prompt", "4096"], "was made for at most 4096"),
        (["--devices", "a10:2", "--prompt", "long"], "--prompt must be a number of tokens"),
        (["--devices", "a10:2", "--new", "9-3"], "from low to high"),
        (["--devices", "a10:2", "--rate", "-1"], "a rate must be requests a second"),
        (["--devices", "a10:1", "--dtype", "fp32"], "llama-7b in fp32 does not fit"),
        (["--devices", "t4:2", "--dtype", "bf16"], "t4 does not compute in bf16"),
        (["--devices", "here:two"], "this machine is written here"),
        (["--devices", "a10:40"], "40"),
    ],
)
def test_impossible_input_is_one_sentence(arguments: list[str], words: str) -> None:
    result = run("plan", "llama-7b", *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("more", [("--link", "nvlink3"), ("--hardware", "mine.toml")])
def test_what_says_nothing_of_this_machine_is_refused(more: tuple[str, str]) -> None:
    result = run("plan", "demo", "--devices", "here", *more)
    assert result.exit_code == 2
    assert "This machine is measured" in result.stderr


def test_neither_needs_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for command in ("plan", "simulate"):
        done = subprocess.run(
            [sys.executable, "-m", "ppinfer.cli", command, *ASK],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "predicted: " in done.stdout
