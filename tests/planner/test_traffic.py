"""Requests that are made up."""

from __future__ import annotations

from statistics import mean

import pytest

from ppinfer.errors import ConfigError
from ppinfer.planner.traffic import Arrival, arrivals, static_batch


def test_a_static_batch() -> None:
    assert static_batch(3, 10, 4) == [Arrival(0.0, 10, 4, 4, False)] * 3


def test_lengths_and_times_are_as_asked_for_and_the_same_again() -> None:
    found = arrivals(2000, (5, 9), (1, 3), rate=50.0)
    assert {arrival.prompt for arrival in found} == {5, 6, 7, 8, 9}
    assert {arrival.new for arrival in found} == {1, 2, 3}
    assert all(arrival.limit == arrival.new and arrival.streamed for arrival in found)
    assert mean(arrival.prompt for arrival in found) == pytest.approx(7, rel=0.03)
    assert found[-1].at == pytest.approx(2000 / 50, rel=0.1)
    assert found == sorted(found, key=lambda arrival: arrival.at)
    assert found == arrivals(2000, (5, 9), (1, 3), rate=50.0)
    assert found != arrivals(2000, (5, 9), (1, 3), rate=50.0, seed=1)
    together = arrivals(5, (5, 9), (1, 3))
    assert all(arrival.at == 0 and not arrival.streamed for arrival in together)


@pytest.mark.parametrize(
    ("count", "prompts", "outputs", "rate", "words"),
    [
        (0, (1, 2), (1, 2), None, "requests must be at least 1, not 0"),
        (1, (0, 2), (1, 2), None, "prompt must be at least 1, not 0"),
        (1, (1, 2), (0, 2), None, "new must be at least 1, not 0"),
        (1, (3, 2), (1, 2), None, "lengths must be given from low to high, not 3-2"),
        (1, (1, 2), (2, 1), None, "lengths must be given from low to high, not 2-1"),
        (1, (1, 2), (1, 2), 0.0, "a rate must be requests a second above 0, not 0.0"),
        (1, (1, 2), (1, 2), float("inf"), "a rate must be requests a second above 0, not inf"),
        (1, (1, 2), (1, 2), float("nan"), "a rate must be requests a second above 0, not nan"),
    ],
)
def test_what_cannot_be(count, prompts, outputs, rate, words) -> None:
    with pytest.raises(ConfigError, match=words):
        arrivals(count, prompts, outputs, rate=rate)
