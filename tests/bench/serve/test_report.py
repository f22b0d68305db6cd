"""Tables, notes and panels."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from ppinfer.bench.serve import report
from ppinfer.bench.serve.arrivals import Load
from ppinfer.bench.serve.figures import Level, figures
from ppinfer.bench.serve.objective import parse_objective
from ppinfer.bench.serve.records import RequestRecord
from ppinfer.bench.serve.run import Served
from ppinfer.bench.tables import show


def level(load: Load, *, busy: float = 0.1, late: float = 0.0, tokens: int = 40) -> Level:
    records = [
        RequestRecord(
            at, at + late, at + 2.0, [at + 1.0, at + 1.5, at + 2.0], input_tokens=100,
            output_tokens=tokens, wanted_input=100, wanted_output=40, status="ok", has_usage=True,
        )
        for at in range(20)
    ]  # fmt: skip
    records += [RequestRecord(3.0, 3.0, 4.0, status="HTTP 503", why="full"), RequestRecord(4.0)]
    return figures(load, records, 25.0, 25.0 * busy, parse_objective("ttft=500ms,itl=50ms"))


def served(*levels: Level) -> Served:
    objective = str(parse_objective("ttft=500ms,itl=50ms"))
    return Served(
        "http://127.0.0.1:8000", "demo", "chat", "prompts", objective, ["A note."], [*levels]
    )


def drawn(found: Served, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(report.tables(found), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_tables_fit_a_terminal() -> None:
    text = drawn(served(level(Load(rate=1.0)), level(Load(rate=math.inf))))
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "1,000 / 1,000 / 1,000" in text
    assert "1/s: the run was ended with 1 unanswered." in text
    assert "A note." in text
    assert "1/s: 1 failed, HTTP 503: full" in text
    assert "faster than it looks" not in text


@pytest.mark.parametrize(
    ("made", "note"),
    [
        (level(Load(rate=1.0), busy=0.9), "this program was busy 90% of the time"),
        (level(Load(rate=1.0), late=0.5), "sent up to 500 ms after they arrived"),
        (level(Load(rate=1.0), tokens=20), "answers had 50% of the tokens"),
        (level(Load(rate=1.0)), "13.3 tokens came at a time"),
    ],
)
def test_what_makes_figures_doubtful_is_said(made: Level, note: str) -> None:
    assert note in " ".join(drawn(served(made)).split())


def test_a_level_without_answers_has_no_figures() -> None:
    empty = figures(Load(concurrency=2), [], 1.0, 0.0, None)
    text = drawn(Served("u", "m", "chat", "r", None, [], [empty]))
    assert "2 at once" in text
    assert "–" in text


def test_panels_name_every_level() -> None:
    panels = report.panels(served(level(Load(rate=1.0)), level(Load(rate=math.inf))))
    assert [list(panel.ticks) for panel in panels] == [["1", "inf"]] * 4
    assert [line.name for line in panels[2].lines] == ["p50", "p90", "p99"]
    assert panels[2].lines[0].ys == [1000.0, 1000.0]
    assert panels[2].limit is None
    limited = served(level(Load(rate=1.0)))
    limited.limits = {"ttft": 0.5}
    assert [panel.limit for panel in report.panels(limited)] == [None, None, 500.0, None]
    flight = report.panels(Served("u", "m", "chat", "r", None, [], [level(Load(concurrency=1))]))
    assert [panel.title for panel in flight][1] == "m: whole answer"
    assert flight[0].x_label == "requests in flight"
