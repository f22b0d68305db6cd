"""Lanes in the terminal: what each column shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType
from support.traces import MS, two_stages

from ppinfer.timeline.buckets import cut
from ppinfer.timeline.lanes import closer, is_coarse, lanes
from ppinfer.timeline.tables import bubble_table, time_table
from ppinfer.trace.analysis import analyse
from ppinfer.trace.intervals import run_interval


def shown(what: RenderableType, width: int, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color,
        color_system="truecolor" if color else None,
    )  # fmt: skip
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(text: str) -> dict[str, str]:
    return {
        line[:7].strip(): line[8:] for line in text.splitlines() if line[:5] in ("stage", "drive")
    }


def test_a_close_look_shows_who_does_what() -> None:
    """Ten milliseconds from 41 on, a column each."""
    text = shown(lanes(two_stages(), (41 * MS, 61 * MS), 28), 28)
    found = rows(text)
    assert found["stage 0"] == "+AAAAAAAA>+BBBBBBBB>"
    assert found["stage 1"] == "BBBBB**>-.AAAAA**>-."
    assert found["driver"].strip()
    assert "AB micro-batches" in text
    assert ". wait input" in " ".join(text.split())


def test_a_far_look_shows_shares_of_work() -> None:
    trace = two_stages(decodes=400, prefills=40)
    interval = run_interval(trace)
    assert is_coarse(trace, interval, 80)
    found = rows(shown(lanes(trace, interval, 80), 80))
    assert set(found["stage 0"][1:70]) == {"▇"}  # nine tenths
    assert set(found["stage 1"][1:70]) <= {"▅", "▆"}  # seven
    assert all(len(row) <= 72 for row in found.values())
    colours = shown(lanes(trace, interval, 80), 80, color=True)
    assert "48;2;225;87;89" in colours or "48;2;242;163;58" in colours


def test_a_closer_look_begins_with_a_step_of_the_first_stage() -> None:
    trace = two_stages(decodes=400)
    start, end = closer(trace, run_interval(trace))
    assert not is_coarse(trace, (start, end), 80)
    assert (start // MS) % 10 == 2
    assert closer(trace, (5, 6)) == (5, 6)


def test_the_axis_has_round_moments() -> None:
    axis = shown(lanes(two_stages(), (41 * MS, 141 * MS), 108), 108).splitlines()[0]
    assert axis.index("|0.06 s") == 8 + 19
    assert "|0.08 s" in axis


def test_columns_hold_all_of_a_lane() -> None:
    trace = two_stages()
    for count in (1, 7, 100, 1000):
        columns = cut(trace.stages[0], trace, 1 * MS, 221 * MS, count)
        assert len(columns) == count
        assert all(sum(column.values()) == pytest.approx(1) for column in columns)
        computed = sum(s for c in columns for kind, s in c.items() if kind[0] == "compute")
        assert computed * 220 / count == pytest.approx(22 * 8)


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_a_terminal(width: int) -> None:
    analysis = analyse(two_stages())
    for table in (time_table(analysis), bubble_table(analysis)):
        text = shown(table, width)
        assert "…" not in text
        assert "steady" in text
        assert max(map(len, text.splitlines())) <= width
    lines = shown(bubble_table(analysis), width).splitlines()
    row = next(line.split() for line in lines if "wait plan" in line)
    assert row == ["wait", "plan", "0.021", "9.1", "21", "1.00", "1.00", "1.00", "95.2"]
