"""Tables for people and for README files, and their pictures."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ppinfer.bench import plots, scaling, throughput_table
from ppinfer.bench.files import save_json
from ppinfer.bench.limits import Rates
from ppinfer.bench.plots import Line, Panel, plot_lines, plot_throughput
from ppinfer.bench.records import Cell, Comparison, Run, compare
from ppinfer.bench.tables import Table, markdown, number, show
from ppinfer.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n"


def run(seconds: float) -> Run:
    return Run(seconds, seconds / 4, 0.5, 60, 0.01, 0.02, [250_000_000] * 2, [0.9, 0.5], [64, 64])


def comparison() -> Comparison:
    cells = []
    for shape, batch in (("8x128x64", 8), ("1x128x64", 1)):
        for stages, seconds in ((0, 4.0), (1, 2.0), (2, 1.0)):
            name = {0: "HF generate", 1: "1 process", 2: "2 stages"}[stages]
            cell = Cell(
                "demo", "bf16", shape, name, stages, 2 if stages == 2 else None,
                64 * batch, 128 * batch, limit=1000.0, ceiling=500.0,
                runs=[run(seconds), run(seconds * 1.1), run(seconds * 0.9)],
                chosen={"layers": [19, 11], "num_micro_batches": 2, "notes": ["It said so."]},
            )  # fmt: skip
            cells.append(cell)
        compare(cells[-3:])
    cells[3].runs, cells[3].status, cells[3].why = [], "skipped", "~300 s"
    cells[4].runs, cells[4].status, cells[4].why = [], "oom", "no memory"
    return Comparison("demo", "bf16", Rates(40e9, 1e12), cells)


def drawn(tables: list[Table], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(tables, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_comparison_is_readable_on_a_terminal(width: int) -> None:
    text = drawn(throughput_table.tables([comparison()]), width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    assert "512 (4.00x)" in text
    assert "OOM, 1 process: no memory (1x128x64)" in " ".join(text.split())
    assert "kernels' ceiling" in text


def test_markdown_holds_the_same() -> None:
    text = markdown(throughput_table.tables([comparison()]))
    assert "| 2 stages | 512 (4.00x) | 64.0 (4.00x) |" in text
    assert "| HF generate | 128 | skipped (~300 s) |" in text
    assert "| 1 process | 256 (2.00x) | OOM |" in text
    assert "- 2 stages: layers 19+11, 2 micro-batches; It said so." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (4, 6, 8, 9) for line in lines)


def test_a_table_of_nothing_but_skipped_cells_is_short() -> None:
    made = comparison()
    for cell in made.cells:
        cell.runs, cell.status, cell.why = [], "skipped", "~999 s"
    assert len(throughput_table.tables([made])) == 1
    assert "skipped (~999 s)" in drawn(throughput_table.tables([made]), 120)


def test_scaling_says_why_it_drops() -> None:
    cells = []
    for stages in (1, 2):
        for count, seconds in ((1, 2.0), (2, 1.0)):
            cell = Cell("demo", "bf16", "32x128x64", f"{stages} stages, {count} mb", stages, count,
                        2048, 4096, runs=[run(seconds * (3 - stages))])  # fmt: skip
            cells.append(cell)
    made = Comparison("demo", "bf16", None, cells)
    text = " ".join(scaling.explain(made))
    assert "Best: 2 stages, 2 mb" in text
    assert "1 micro-batch cannot keep 2 stages busy" in text
    assert len(scaling.tables(made)) == 3
    assert [line.name for line in scaling.panels(made)[0].lines] == ["1 process", "2 stages"]


def test_numbers() -> None:
    assert [number(x) for x in (1234.5, 99.94, 9.994)] == ["1,234", "99.9", "9.99"]


def test_pictures_are_png_files(tmp_path: Path) -> None:
    plot_throughput([comparison()], tmp_path / "bars.png")
    lines = [Line("a", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0]), Line("b", [1], [1.0])]
    plot_lines([Panel("t", "x", "y", lines)] * 2, tmp_path / "lines.png")
    for name in ("bars.png", "lines.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.png", "lines.png"]


def test_without_matplotlib_a_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'ppinfer\[plot\]'"):
        plots.require_matplotlib()


def test_result_files_are_whole_or_absent(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_json(tmp_path / "nowhere" / "a.json", {})
