"""Spans to boxes, and counters to rates."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.fake_state import fake_state, packed

from ppinfer.engine.state import EngineState, LiveState, StageSpans, StageState, StepLabel
from ppinfer.server.lanes import IDLE, INPUT, OTHER, PLAN, SEND, SHORTEST, Lanes
from ppinfer.server.rates import Rates, Shares
from ppinfer.trace.clock import Activity

MS = 1_000_000
BUSY, AT_REST = EngineState(running=1), EngineState()


def live(
    *spans: tuple[Activity, int, float],
    start: float = 0,
    state: EngineState = BUSY,
    steps: dict[int, StepLabel] | None = None,
    shift: int = 0,
) -> LiveState:
    """One stage; times in milliseconds."""
    ends = [(kind, step, round(end * MS)) for kind, step, end in spans]
    part = StageSpans(round(start * MS), packed(ends), 0, shift)
    return LiveState(0, state, [[part]], steps or {})


def boxes(found: LiveState, lanes: Lanes | None = None) -> list[tuple[int, int, float, float]]:
    """With times in milliseconds."""
    if lanes is None:
        lanes = Lanes()
        lanes.boxes(live())
    (made,) = lanes.boxes(found)
    return [(kind, step, start / MS, end / MS) for kind, step, start, end in made]


STEPS = {4: StepLabel(2, "decode 8"), 5: StepLabel(0, "decode 7")}


def test_a_step_is_one_box_and_waits_have_their_cause() -> None:
    found = live(
        (Activity.WAIT_PLAN, -1, 2), (Activity.PREPARE, 4, 2.1), (Activity.WAIT_INPUT, 4, 4),
        (Activity.COMPUTE, 4, 9), (Activity.SAMPLE, 4, 11), (Activity.SEND, 4, 12),
        (Activity.COMPUTE, 5, 15), steps=STEPS,
    )  # fmt: skip
    assert boxes(found) == [
        (PLAN, -1, 0, 2), (INPUT, -1, 2, 4), (2, 4, 4, 11), (SEND, -1, 11, 12), (0, 5, 12, 15),
    ]  # fmt: skip


def test_a_step_goes_on_in_the_next_look_and_is_known_then() -> None:
    lanes = Lanes()
    lanes.boxes(live())
    assert boxes(live((Activity.COMPUTE, 4, 3), steps=STEPS), lanes) == [(2, 4, 0, 3)]
    assert boxes(live((Activity.COMPUTE, 4, 6), start=3), lanes) == [(2, 4, 3, 6)]


def test_work_that_was_planned_before_anybody_watched() -> None:
    assert boxes(live((Activity.COMPUTE, 3, 3))) == [(OTHER, 3, 0, 3)]


def test_another_hosts_times_are_shifted() -> None:
    assert boxes(live((Activity.COMPUTE, 4, 3), steps=STEPS, shift=7 * MS)) == [(2, 4, 7, 10)]


def test_waits_without_a_request_are_no_bubbles() -> None:
    lanes = Lanes()
    wait, work = Activity.WAIT_PLAN, Activity.COMPUTE
    assert boxes(live((wait, -1, 9), state=AT_REST), lanes) == [(IDLE, -1, 0, 9)]
    begins = live((wait, -1, 3), (work, 4, 5), (wait, -1, 7), steps=STEPS)
    assert [kind for kind, *_ in boxes(begins, lanes)] == [IDLE, 2, PLAN]
    ends = live((work, 5, 2), (wait, -1, 4), (work, 5, 6), (wait, -1, 9), state=AT_REST)
    assert [kind for kind, *_ in boxes(ends, lanes)] == [0, PLAN, 0, IDLE]


def test_however_short_the_steps_the_boxes_are_few_and_cover_all() -> None:
    spans, at = [], 0.0
    steps = {step: StepLabel(step % 3, "decode 1") for step in range(3000)}
    for step in range(3000):
        spans += [(Activity.COMPUTE, step, at + 0.02), (Activity.SEND, step, at + 0.03)]
        at += 0.03
    (made,) = Lanes().boxes(live(*spans, steps=steps))
    assert len(made) <= at * MS / SHORTEST + 1
    assert all(one[3] == other[2] for one, other in pairwise(made))
    assert (made[0][2], made[-1][3]) == (0, round(at * MS))
    assert all(kind >= 0 for kind, *_ in made), "what took longest gives its name"


def test_labels_are_not_kept_for_ever() -> None:
    lanes = Lanes()
    for first in range(0, 20_000, 1000):
        lanes.boxes(live(steps={first + i: StepLabel(1, "") for i in range(1000)}))
    assert boxes(live((Activity.COMPUTE, 19_999, 3)), lanes)[0][0] == 1
    assert boxes(live((Activity.COMPUTE, 5, 3)), lanes)[0][0] == OTHER


def stage(**seconds: float) -> StageState:
    return StageState(
        stage=0, first_layer=0, last_layer=2, weight_bytes=0, kv_cache_bytes=0, heartbeat_age=0,
        **seconds,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_second_makes_a_sample() -> None:
    rates, first = Rates(), fake_state([], 100)
    assert rates.take(10.0, first) is None
    assert rates.take(10.5, fake_state([], 150)) is None
    later = fake_state([], 160, running=3, waiting=2, kv_blocks_used=25)
    for seconds in (0.1, 0.3):
        later.latency.time_to_first_token.observe(seconds)
    sample = rates.take(11.5, later)
    assert sample is not None
    assert (sample.tokens_per_second, sample.time_to_first_token) == (40.0, pytest.approx(0.2))
    assert (sample.running, sample.waiting, sample.kv_usage) == (3, 2, 0.25)
    quiet = rates.take(13.0, later)
    assert quiet is not None
    assert (quiet.tokens_per_second, quiet.time_to_first_token) == (0.0, None)


def test_shares_are_of_the_last_second() -> None:
    rates = Rates()
    rates.take(0.0, EngineState(stages=[stage(compute=100.0), stage(compute=5.0)]))
    after = stage(compute=100.4, sample=0.1, wait_plan=0.2, wait_input=0.3)
    rates.take(1.0, EngineState(stages=[after, stage(compute=5.0)]))
    assert rates.shares == [Shares(0.5, 0.2, 0.3, 0.0), None], "one says nothing new"
