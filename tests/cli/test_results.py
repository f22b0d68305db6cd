"""Results appear in the prompts' order, and text as soon as its turn has come."""

from __future__ import annotations

import json

import pytest

from ppinfer.cli.prompts import Given
from ppinfer.cli.results import JsonResults, TextResults
from ppinfer.request import RequestDelta

Capture = pytest.CaptureFixture[str]


def given(*titles: str) -> list[Given]:
    return [Given(title, title) for title in titles]


def delta(index: int, text: str, end: bool = False) -> RequestDelta:
    return RequestDelta(index, text, [1], "stop" if end else None)


def test_text_of_the_first_unfinished_prompt_is_shown_at_once(capsys: Capture) -> None:
    results = TextResults(given("p", "q", "r"))

    def shown() -> str:
        return capsys.readouterr().out

    results.add(delta(1, "later"))
    assert shown() == ""
    results.add(delta(0, "a"))
    assert shown() == "==> 1: p <==\na"
    results.add(delta(2, "last", end=True))
    results.add(delta(0, "b"))
    assert shown() == "b"
    results.add(delta(0, "", end=True))
    assert shown() == "\n\n==> 2: q <==\nlater"
    assert results.num_shown == 1
    results.add(delta(1, "!\n", end=True))
    assert shown() == "!\n\n==> 3: r <==\nlast\n"
    assert results.num_shown == results.num_finished == 3


def test_a_single_prompt_has_no_title(capsys: Capture) -> None:
    results = TextResults(given("p"))
    results.add(delta(0, "a"))
    results.add(delta(0, "\n", end=True))
    assert capsys.readouterr().out == "a\n"


def test_json_waits_for_whole_results(capsys: Capture) -> None:
    results = JsonResults(given("p", "q"))
    results.add(delta(1, "B", end=True))
    results.add(delta(0, "A"))
    assert capsys.readouterr().out == ""
    results.add(delta(0, "a", end=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["index"], line["text"]) for line in lines] == [(0, "Aa"), (1, "B")]
    assert lines[0]["token_ids"] == [1, 1]
