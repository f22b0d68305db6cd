"""Traces made by hand, of a pipeline whose every moment is known; what viewers ask of a file."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from ppinfer.trace.model import Lane, Span, StepFacts, Trace

MS = 1_000_000


def two_stages(decodes: int = 20, prefills: int = 2) -> Trace:
    """Two micro-batches over two stages, in milliseconds from 1 on.

    Every step takes stage 0 10: 1 preparing, 8 computing, 1 sending. Stage 1 gets it at 10 and
    computes 5, samples 2 and sends for 1, then waits 2 for the next: 1 for its plan, 1 for input.
    The driver plans for 1 in every step, while stage 1 waits for that plan, and commits for 1
    while it sends; the last commit comes after everything.
    """
    first, last, driver, steps = Lane("stage 0"), Lane("stage 1"), Lane("driver"), {}
    at = 1
    _add(first, "wait_plan", -1, 0, at)
    _add(last, "wait_plan", -1, 0, at)
    _add(last, "wait_input", 0, at, at + 10)
    _add(driver, "wait", -1, 0, 0)
    for step in range(prefills + decodes):
        tokens, decoding = (30, 0) if step < prefills else (3, 3)
        steps[step] = StepFacts(step % 2, tokens, 3, decoding)
        start = at + 10 * step
        for name, length in (("prepare", 1), ("compute", 8), ("send", 1)):
            _add(first, name, step, start, start + length)
            start += length
        for name, length in (("compute", 5), ("sample", 2), ("send", 1)):
            _add(last, name, step, start, start + length)
            start += length
        final = step == prefills + decodes - 1
        if not final:
            _add(last, "wait_plan", -1, start, start + 1)
            _add(last, "wait_input", step + 1, start + 1, start + 2)
    end = at + 10 * (prefills + decodes) + 8
    _add(first, "wait_plan", -1, end - 8, end)
    for step in range(prefills + decodes):
        planned = at + 10 * step - 2 if step > 1 else step
        _add(driver, "plan", step, max(planned, 0), max(planned, 0) + 1)
        if step > 0:
            done = at + 10 * step + 7
            _add(driver, "commit", step - 1, done, done + 1)
    _add(driver, "commit", len(steps) - 1, end, end + 1)
    driver.spans.sort(key=lambda span: span.start)
    return Trace([first, last], driver, steps, {"model": "toy", "stages": "2 stages"})


def _add(lane: Lane, activity: str, step: int, start: int, end: int) -> None:
    if end > start:
        lane.spans.append(Span(activity, step, start * MS, end * MS))


def check_events(events: list[dict[str, Any]]) -> None:
    """What chrome://tracing and Perfetto need."""
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    boxes = defaultdict(list)
    for event in events:
        assert event["ph"] in ("M", "X", "s", "f")
        assert event["tid"] in named
        assert event["name"]
        if event["ph"] == "X":
            assert event["dur"] > 0
            boxes[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(boxes) == named
    for lane in boxes.values():
        assert lane == sorted(lane)
        for (_, end), (start, _) in pairwise(lane):
            assert start >= end - 1e-3  # a nanosecond: times are in microseconds
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    finishes = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == sum(e["ph"] == "s" for e in events)
    assert starts.keys() == finishes.keys()
    for number, start in starts.items():
        finish = finishes[number]
        assert finish["ts"] >= start["ts"]
        assert finish["bp"] == "e"
        assert (start["name"], start["cat"]) == (finish["name"], finish["cat"])
        for end in (start, finish):  # an arrow is tied to the box around it
            assert any(a <= end["ts"] < b for a, b in boxes[end["tid"]])
