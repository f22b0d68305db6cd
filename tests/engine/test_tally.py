"""Counters and latencies of requests, from stamps that tests set."""

from __future__ import annotations

import queue
import time

import pytest

from ppinfer.engine import tally as tallies
from ppinfer.engine.live import LiveRequest
from ppinfer.engine.state import Histogram, Latency
from ppinfer.engine.tally import ENDS, Tally
from ppinfer.messages import NewSequence, SequenceStep, StepPlan
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=9)


class Hands:
    """Time stands still unless it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(tallies.time, "perf_counter", lambda: self.now)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    return Hands(monkeypatch)


def request(hands: Hands, seq_id: int) -> LiveRequest:
    sink: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
    made = Request(seq_id, tuple(range(40)), PARAMS)
    return LiveRequest(made, 0, sink, arrived=hands.now)  # type: ignore[arg-type]


def plan(*starts: tuple[int, int]) -> StepPlan:
    """One in which these sequences are new, each from a position on."""
    new = [NewSequence(seq_id, 40, PARAMS) for seq_id, _ in starts]
    steps = [SequenceStep(seq_id, start, [1, 2], [], True) for seq_id, start in starts]
    return StepPlan(0, 0, [], new, steps)


def sums(latency: Latency) -> dict[str, tuple[int, float]]:
    names = latency.__struct_fields__
    found = {name: getattr(latency, name) for name in names}
    return {name: (one.count, round(one.sum, 6)) for name, one in found.items()}


def test_a_request_from_arrival_to_end(hands: Hands) -> None:
    tally, one = Tally(), request(hands, 7)
    hands.now += 2
    tally.planned(plan((7, 16)), {7: one})
    for at in (103.5, 104.0, 104.25):
        tally.token(one, at)
    tally.end(one, "length")
    assert sums(tally.latency) == {
        "queue": (1, 2.0), "prefill": (1, 1.5), "time_to_first_token": (1, 3.5),
        "inter_token": (2, 0.75), "decode": (1, 0.75), "end_to_end": (1, 4.25),
    }  # fmt: skip
    assert (tally.prompt_tokens, tally.new_tokens) == (40, 3)
    assert tally.finished == {"stop": 0, "length": 1, "abort": 0, "error": 0}


def test_what_is_computed_again_counts_once(hands: Hands) -> None:
    tally, one = Tally(), request(hands, 1)
    tally.planned(plan((1, 0)), {1: one})
    hands.now += 5
    tally.planned(plan((1, 32), (2, 0)), {1: one})  # the other one was aborted meanwhile
    assert tally.prompt_tokens == 40
    assert sums(tally.latency)["queue"] == (1, 0.0)


@pytest.mark.parametrize("how", ["abort", "error"])
def test_times_of_what_was_cut_off_do_not_count(hands: Hands, how: str) -> None:
    tally, one = Tally(), request(hands, 1)
    tally.planned(plan((1, 0)), {1: one})
    tally.token(one, 101.0)
    tally.end(one, how)
    tally.end(request(hands, 2), how)
    assert tally.finished == dict.fromkeys(ENDS, 0) | {how: 2}
    found = sums(tally.latency)
    assert (found["decode"], found["end_to_end"]) == ((0, 0.0), (0, 0.0))
    assert found["time_to_first_token"] == (1, 1.0)


def test_a_bound_belongs_to_the_bucket_below() -> None:
    histogram = Histogram.within((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.count, histogram.sum) == ([2, 2, 1], 5, 14.0)
    copied = histogram.copy()
    histogram.observe(0.1)
    assert copied.count == 5


def test_a_token_costs_little() -> None:
    """A hundred times less than a step of one sequence takes."""
    tally = Tally()
    one = LiveRequest(Request(1, (1,), PARAMS), 0, queue.SimpleQueue())
    best = min(_timed(tally, one) for _ in range(5))
    assert best < 5e-6


def _timed(tally: Tally, one: LiveRequest) -> float:
    began = time.thread_time()
    for _ in range(1000):
        tally.token(one, began)
    return (time.thread_time() - began) / 1000
