"""When requests come."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.bench.serve.arrivals import Extent, Load, arrivals, parse_loads
from ppinfer.errors import ConfigError


@given(st.floats(0.01, 1e4), st.integers(0, 2**32), st.integers(1, 50))
def test_they_are_in_order_and_as_many_as_asked(rate: float, seed: int, count: int) -> None:
    times = list(arrivals(rate, Extent(requests=count), seed))
    assert len(times) == count
    assert times[0] == 0
    assert times == sorted(times)
    assert times == list(arrivals(rate, Extent(requests=count), seed))


@given(st.floats(0.1, 50), st.integers(0, 1000), st.floats(0.1, 10))
def test_they_end_in_time(rate: float, seed: int, seconds: float) -> None:
    times = list(arrivals(rate, Extent(seconds=seconds), seed))
    assert times
    assert times[-1] < seconds


@given(st.integers(0, 1000), st.floats(0.1, 100))
def test_another_rate_is_the_same_pattern_faster(seed: int, rate: float) -> None:
    slow = arrivals(1.0, Extent(requests=20), seed)
    assert [at / rate for at in slow] == pytest.approx(list(arrivals(rate, Extent(20), seed)))


def test_gaps_are_those_of_a_poisson_process() -> None:
    times = list(arrivals(4.0, Extent(requests=20_000), 1))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.03)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert list(arrivals(math.inf, Extent(requests=3), 0)) == [0, 0, 0]


def test_loads_are_read() -> None:
    assert parse_loads("1, 2.5,inf,1", None) == (Load(1.0), Load(2.5), Load(math.inf))
    assert [load.name for load in parse_loads("1,2.5,inf", None)] == ["1/s", "2.5/s", "inf"]
    assert [load.label for load in parse_loads(None, "1,32")] == ["1", "32"]


@pytest.mark.parametrize(
    ("rates", "concurrency", "message"),
    [
        (None, None, "either --rate"),
        ("1", "1", "either --rate"),
        ("0", None, "such as 1,2.5,inf"),
        ("nan", None, "such as 1,2.5,inf"),
        ("1,fast", None, "such as 1,2.5,inf"),
        ("", None, "such as 1,2.5,inf"),
        (None, "0", "concurrency must be"),
    ],
)
def test_other_loads_are_refused(rates: str | None, concurrency: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_loads(rates, concurrency)


def test_a_level_that_would_not_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="say how many"):
        Extent(seconds=1.0).check((Load(rate=math.inf),))
    Extent(seconds=1.0).check((Load(rate=2.0),))
