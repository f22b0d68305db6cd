"""``ppinfer timeline`` and ``--trace``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.fake_engine import FakeEngine, run
from support.traces import two_stages

from ppinfer.cli.results import TextResults
from ppinfer.request import RequestDelta
from ppinfer.trace.chrome import read_trace, write_trace
from ppinfer.trace.model import Lane, Trace


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_trace(two_stages(), tmp_path / "t.json")
    return tmp_path / "t.json"


def test_lanes_and_tables(file: Path) -> None:
    result = run("timeline", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "toy, 2 stages, 2 micro-batches"
    assert lines[1].startswith("whole run: 0.230 s, 22 steps, 261 tokens/s, idle 10.9%, driver ")
    assert lines[2].startswith("steady decode: ")
    assert sum(line.startswith("stage 1 ") for line in lines) >= 1
    assert "Bubbles by cause and stage" in result.stdout
    assert all(len(line) <= 80 for line in lines)


def test_json(file: Path) -> None:
    found = json.loads(run("timeline", str(file), "--json").stdout)
    assert found["info"] == {"model": "toy", "stages": "2 stages"}
    assert found["total"]["steps"] == 22
    stages = found["steady"]["stages"]
    assert [stage["stage"] for stage in stages] == [0, 1]
    assert stages[0]["parts"]["compute"]["share"] == pytest.approx(0.8, abs=0.02)
    causes = {(bubble["stage"], bubble["cause"]) for bubble in found["total"]["bubbles"]}
    assert (1, "wait_input") in causes


def test_a_window(file: Path) -> None:
    found = json.loads(run("timeline", str(file), "--from", "0.05", "--to", "0.1", "--json").stdout)
    assert found["total"]["seconds"] == pytest.approx(0.05)
    assert found["total"]["start"] == pytest.approx(0.05)
    result = run("timeline", str(file), "--from", "0.041", "--to", "0.061")
    assert "AB micro-batches" in result.stdout
    assert "A closer look" not in result.stdout


def test_a_picture(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("timeline", str(file), "--png", str(tmp_path / "t.png"))
    assert result.exit_code == 0
    assert (tmp_path / "t.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--from", "2"), 1, "the run goes from 0 to 0.23 s"),
        (("--from", "2", "--to", "1"), 2, "--from must be before --to"),
    ],
)
def test_windows_of_nothing(
    file: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    result = run("timeline", str(file), *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr


def test_wrong_files(tmp_path: Path) -> None:
    result = run("timeline", str(tmp_path / "none"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be read: No such file" in result.stderr
    (tmp_path / "other").write_text("{}")
    result = run("timeline", str(tmp_path / "other"))
    assert result.stderr.startswith("ppinfer: error: ")
    assert "is no trace of ppinfer" in result.stderr
    write_trace(Trace([Lane("stage 0")], Lane("driver")), tmp_path / "empty")
    assert "holds no step" in run("timeline", str(tmp_path / "empty")).stderr


def test_what_a_trace_lacks_is_said(tmp_path: Path) -> None:
    trace = two_stages()
    trace.stages[0].dropped, trace.stages[1].clock_error = 1234, 250_000
    write_trace(trace, tmp_path / "t.json")
    result = run("timeline", str(tmp_path / "t.json"), "--json")
    assert "stage 0 made 1,234 spans more than a trace keeps" in result.stderr
    assert "stage 1 may be shifted by up to 0.250 ms" in result.stderr


class TestTraceOption:
    @pytest.mark.parametrize("command", [("generate", "m", "a"), ("chat", "m")])
    def test_a_command_writes_a_trace(
        self, engine: type[FakeEngine], tmp_path: Path, command: tuple[str, ...]
    ) -> None:
        path = tmp_path / "t.json"
        result = run(*command, "--trace", str(path), stdin="a\n")
        assert result.exit_code == 0
        assert f"trace: {path} (show it: ppinfer timeline {path}" in result.stderr
        trace = read_trace(path)
        assert trace.title == "m, 2 stages, 2 micro-batches"
        assert len(trace.stages) == 2

    def test_an_interrupted_run_has_a_trace(self, engine: type[FakeEngine], tmp_path: Path) -> None:
        result = run("generate", "m", "a interrupt b", "--trace", str(tmp_path / "t.json"))
        assert result.exit_code == 130
        assert "ppinfer: trace: " in result.stderr
        assert len(read_trace(tmp_path / "t.json").stages) == 2

    def test_quietly(self, engine: type[FakeEngine], tmp_path: Path) -> None:
        result = run("generate", "m", "a", "-q", "--trace", str(tmp_path / "t.json"))
        assert result.stderr == ""
        assert (tmp_path / "t.json").exists()

    def test_where_it_cannot_go_nothing_starts(
        self, engine: type[FakeEngine], tmp_path: Path
    ) -> None:
        for command in (("generate", "m", "a"), ("chat", "m")):
            result = run(*command, "--trace", str(tmp_path / "none" / "t.json"))
            assert (result.exit_code, result.stdout) == (1, "")
            assert "cannot be written" in result.stderr
        assert not engine.made

    def test_a_failed_write_keeps_the_results(
        self, engine: type[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        show = TextResults.add

        def fill_up(results: TextResults, delta: RequestDelta) -> None:
            (tmp_path / "t.json").mkdir()
            show(results, delta)

        monkeypatch.setattr(TextResults, "add", fill_up)
        result = run("generate", "m", "a", "--trace", str(tmp_path / "t.json"))
        assert (result.exit_code, result.stdout) == (0, " A\n")
        assert "tokens/s" in result.stderr
        assert "warning: The trace cannot be written" in result.stderr
        assert "show it" not in result.stderr
