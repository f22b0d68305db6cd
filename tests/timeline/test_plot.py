"""The picture of a trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.traces import two_stages

from ppinfer.errors import ConfigError, TraceError
from ppinfer.timeline.plot import save_png
from ppinfer.trace.analysis import analyse
from ppinfer.trace.intervals import run_interval
from ppinfer.trace.model import Lane, Span, Trace


def draw(trace: Trace, path: Path) -> None:
    save_png(trace, analyse(trace), run_interval(trace), path)


def test_a_picture_is_made(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(two_stages(), tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    one = Trace([Lane("stage 0", [Span("compute", 0, 5, 900)])], Lane("driver"))
    draw(one, tmp_path / "one.png")


def test_where_it_cannot_go_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(TraceError, match="cannot be written"):
        draw(two_stages(), tmp_path / "none" / "t.png")


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install ppinfer\[plot\]"):
        draw(two_stages(), tmp_path / "t.png")
