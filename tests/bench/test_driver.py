"""The driver's benchmark: its made-up stages, and which of the driver's rounds count."""

from __future__ import annotations

import pytest

from ppinfer.bench.driver import full_rounds, measure_driver, table
from ppinfer.bench.named import opened
from ppinfer.trace.model import DRIVER_WORK, Lane, Span, StepFacts, Trace


def silent(event: str, done: float, total: float) -> None:
    pass


@pytest.mark.parametrize("model", ["demo", "toy"])
def test_every_case_is_measured_warm_and_swept(model: str) -> None:
    """With text and, where the model has no tokenizer, without."""
    with opened(model) as subject:
        cells = list(measure_driver(subject, [4, 1], [1, 2], 20, 2, silent))[-1]
    assert [(cell.sequences, cell.micro_batches, cell.swept) for cell in cells] == [
        (count, slots, swept)
        for count, slots in ((4, 1), (4, 2), (1, 1))
        for swept in (False, True)
    ]
    for cell in cells:
        assert cell.parts.keys() == set(DRIVER_WORK)
        assert all(len(values) == 2 and min(values) > 0 for values in cell.parts.values())
        assert len(cell.totals) == len(cell.tails) == 2
        assert 0 < min(cell.totals) <= max(cell.tails)
    drawn = table(cells, model)
    assert [row[:2] for row in drawn.rows[:2]] == [["4 in 1", "warm"], ["4 in 1", "swept"]]
    assert drawn.breaks == [2, 4]


def test_only_full_decode_steps_count() -> None:
    spans, now = [], 0
    for activity, step, length in (
        ("wait", -1, 9), ("read", -1, 1), ("commit", 0, 2), ("plan", 1, 4),
        ("wait", -1, 9), ("read", -1, 1), ("commit", 1, 2), ("plan", 2, 3), ("plan", -1, 1),
        ("wait", -1, 9), ("read", -1, 5), ("commit", 2, 5),
        ("wait", -1, 9), ("admit", -1, 5),
        ("wait", -1, 9),
    ):  # fmt: skip
        spans.append(Span(activity, step, now, now := now + length * 10**9))
    steps = {0: StepFacts(0, 8, 2, 0), 1: StepFacts(0, 2, 2, 2), 2: StepFacts(0, 1, 1, 1)}
    rounds = full_rounds(Trace([], Lane("driver", spans), steps), 2)
    assert rounds == [{"read": 1.0, "commit": 2.0, "plan": 4.0}]
