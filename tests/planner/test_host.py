"""Cores that stages share: no work is lost, and none is done faster than cores allow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppinfer.planner.host import Host

tasks = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.5, 1.0, 7.0]), st.floats(0, 5), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)
"""When each begins, its seconds alone, and its threads."""


def run(host: Host, todo: list[tuple[float, float, int]]) -> dict[int, float]:
    """When each task ends."""
    waiting = sorted(enumerate(todo), key=lambda task: task[1][0])
    ends: dict[int, float] = {}
    while len(ends) < len(todo):
        due = host.next_end()
        if waiting and (due is None or waiting[0][1][0] <= due[0]):
            task, (at, seconds, threads) = waiting.pop(0)
            host.begin(at, task, seconds, threads)
        else:
            assert due is not None
            ends[due[1]] = due[0]
            host.end(*due)
    assert host.next_end() is None
    return ends


@given(tasks, st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_work_is_conserved(todo, cores):
    ends = run(Host(cores), todo)
    work = sum(seconds * threads for _, seconds, threads in todo)
    first, last = min(at for at, _, _ in todo), max(ends.values())
    most = max([cores, *(threads for _, _, threads in todo)])  # one alone is never slowed down
    assert last - first >= work / most - 1e-9
    for task, (at, seconds, threads) in enumerate(todo):
        least = seconds * max(1.0, threads / cores)
        assert ends[task] >= at + least - 1e-9, "no faster than alone"
    if all(at == 0 for at, _, _ in todo) and len({threads for *_, threads in todo}) == 1:
        in_turn = sum(seconds * max(1.0, threads / cores) for _, seconds, threads in todo)
        assert last <= in_turn + 1e-9, "no slower than one after the other"


def test_two_on_one_core_take_twice_as_long() -> None:
    assert run(Host(1), [(0.0, 2.0, 1), (0.0, 3.0, 1)]) == pytest.approx({0: 4.0, 1: 5.0})


def test_one_that_comes_later_slows_down_what_is_left() -> None:
    """A second alone, then half of the core until the shorter is done."""
    assert run(Host(1), [(0.0, 3.0, 1), (1.0, 1.0, 1)]) == pytest.approx({0: 4.0, 1: 3.0})


def test_threads_are_what_counts() -> None:
    """Three threads want two cores."""
    assert run(Host(2), [(0.0, 2.0, 2), (0.0, 2.0, 1)]) == pytest.approx({0: 3.0, 1: 3.0})
    assert run(Host(3), [(0.0, 2.0, 2), (0.0, 2.0, 1)]) == pytest.approx({0: 2.0, 1: 2.0})


def test_devices_of_their_own_are_not_shared() -> None:
    assert run(Host(math.inf), [(0.0, 2.0, 4), (0.0, 3.0, 4)]) == pytest.approx({0: 2.0, 1: 3.0})
