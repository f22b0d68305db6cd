"""``ppinfer bench published``, on a few of the cells."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ppinfer.bench import published as bench
from ppinfer.cli.bench_published import published
from ppinfer.planner.published.figures import load_figures


@pytest.fixture
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = load_figures()
    cells = tuple(
        replace(cell, new=cell.new // 8)
        for cell in figures.cells
        if cell.dtype == "fp32" and cell.column in ("2(1)", "4(2)", "8(4)")
    )
    monkeypatch.setattr(bench, "load_figures", lambda: replace(figures, cells=cells))


@pytest.mark.usefixtures("few_cells")
def test_tables_files_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["ppinfer", "bench", "published"])
    published(as_json=True, output=tmp_path / "p", plot=tmp_path / "p.png")
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "p.json").read_text()) == found
    results = found["results"]
    assert set(results["systems"]) == {"pipeline", "hugging_face"}
    assert len(results["cells"]) == 6
    first = results["cells"][0]
    assert first["pipeline"]["published"] == 20.61
    assert first["ppinfer"]["after_each_change"]["as it was"] == pytest.approx(
        first["pipeline"]["predicted"]
    )
    assert results["cells"][2]["hugging_face"]["published"] is None
    text = (tmp_path / "p.md").read_text()
    assert "## llama-7b, fp32" in text
    assert "| 1024, 16 | Pipeline | 20.61 | 31.23 | 45.20 |" in text
    assert "usable_gib" in text
    assert "one change after the other" in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
