"""Whole runs against a server that says numbers."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, serving

from ppinfer.bench.serve.arrivals import Extent, parse_loads
from ppinfer.bench.serve.lengths import Lengths
from ppinfer.bench.serve.plan import Plan
from ppinfer.bench.serve.run import Served, measure_serve
from ppinfer.bench.serve.target import Dialect, Target
from ppinfer.bench.serve.words import WORDS
from ppinfer.bench.serve.workload import Entry, Gauge
from ppinfer.errors import ConfigError, ServerError


def plan(fake: FakeOpenAI, **changes: Any) -> Plan:
    made = Plan(
        Target(fake.url, "chat"), None, parse_loads("inf", None), Extent(requests=6),
        prompt=Lengths(20, 40), output=Lengths(2, 6), timeout=60.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def run(made: Plan) -> Served:
    return measure_serve(made, lambda found: None, lambda event, done, total: None)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("tokenize", [True, False])
def test_every_answer_is_counted(endpoint: str, tokenize: bool) -> None:
    with serving(FakeOpenAI(tokenize=tokenize)) as fake:
        found = run(plan(fake, target=Target(fake.url, endpoint)))
    (level,) = found.levels
    assert (found.model, found.notes, found.interrupted) == ("numbers", [], False)
    assert (level.requests, level.done, level.failed) == (6, 6, 0)
    assert level.output_tokens == level.wanted_output == level.chunks
    assert level.input_tokens == level.wanted_input
    assert len(fake.load) == 6
    assert all(body["model"] == "numbers" for body in fake.load)
    assert ("messages" in fake.load[0]) == (endpoint == "chat")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_bytes_may_come_cut_anywhere(line_end: bytes) -> None:
    with serving(FakeOpenAI(piece=3, line_end=line_end, fail={5: 503})) as fake:
        found = run(plan(fake))
    (level,) = found.levels
    assert (level.done, level.why) == (5, {"HTTP 503": "not now"})
    assert level.output_tokens == level.wanted_output == level.chunks
    assert level.input_tokens == level.wanted_input


def test_levels_have_the_same_lengths_and_other_words() -> None:
    with serving(FakeOpenAI()) as fake:
        run(plan(fake, loads=parse_loads(None, "1,2"), shared_prefix=10))
    texts = [body["messages"][0]["content"].split() for body in fake.load]
    assert len({tuple(t[:11]) for t in texts}) == 1
    assert len({tuple(t) for t in texts}) == 12
    assert sorted(map(len, texts[:6])) == sorted(map(len, texts[6:]))


class Gathering:
    """A server's turns: the load's answers begin when so many requests have been there at once."""

    def __init__(self, fake: FakeOpenAI, count: int, at_once: int) -> None:
        self.fake, self.count = fake, count
        self.places = threading.Semaphore(at_once)

    def __enter__(self) -> None:
        deadline = time.monotonic() + 15
        while self.fake.load and self.fake.most_at_once < self.count:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        self.places.acquire()

    def __exit__(self, *_: object) -> None:
        self.places.release()


def test_no_more_are_in_flight_than_asked() -> None:
    with serving(FakeOpenAI(delay=0.01, one_at_a_time=True)) as fake:
        fake.turn = Gathering(fake, 3, at_once=9)
        found = run(plan(fake, loads=parse_loads(None, "3"), extent=Extent(requests=9)))
        assert fake.most_at_once == 3
    assert found.levels[0].done == 9


def test_a_slow_server_does_not_slow_the_arrivals() -> None:
    """With one answer at a time, those that wait must show it."""
    with serving(FakeOpenAI(delay=0.02, one_at_a_time=True)) as fake:
        fake.turn = Gathering(fake, 4, at_once=1)
        found = run(plan(fake, loads=parse_loads("1000", None), output=Lengths(5, 5)))
        assert fake.most_at_once > 3
    (level,) = found.levels
    assert level.ttft is not None
    assert level.ttft.max > 5 * 5 * 0.02


def test_a_level_ends_after_its_seconds() -> None:
    with serving(FakeOpenAI(delay=0.005)) as fake:
        for loads in (parse_loads("50", None), parse_loads(None, "2")):
            (level,) = run(plan(fake, loads=loads, extent=Extent(seconds=0.3))).levels
            assert level.done == level.requests > 1
            assert level.seconds >= 0.2


def test_failures_are_counted_by_status() -> None:
    with serving(FakeOpenAI(fail={1: 503, 2: 503, 4: 429})) as fake:
        found = run(plan(fake, loads=parse_loads(None, "1")))
    (level,) = found.levels
    assert (level.done, level.failures) == (3, {"HTTP 503": 2, "HTTP 429": 1})
    assert level.why["HTTP 503"] == "not now"


def test_streams_that_are_cut_are_failures() -> None:
    with serving(FakeOpenAI(cut=1)) as fake:
        found = run(plan(fake))
    assert found.levels[0].failures == {"disconnected": 6}


def test_an_answer_that_takes_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def knows(client: object, target: Target) -> tuple[Target, Gauge, list[str]]:
        return target, Gauge(WORDS, 1.0, 0.0), []

    monkeypatch.setattr("ppinfer.bench.serve.run.meet", knows)  # whose answers have no more time
    with serving(FakeOpenAI(delay=0.1)) as fake:
        found = run(plan(fake, timeout=0.3, output=Lengths(9, 9), extent=Extent(requests=2)))
    assert found.levels[0].failures == {"timeout": 2}


@pytest.mark.parametrize(
    ("unknown", "notes"),
    [
        (("ignore_eos",), ["refuses ignore_eos"]),
        (("stream_options",), ["sends no usage"]),
        (("ignore_eos", "stream_options"), ["refuses ignore_eos", "sends no usage"]),
    ],
)
def test_a_server_that_knows_less_is_asked_for_less(
    unknown: tuple[str, ...], notes: list[str]
) -> None:
    with serving(FakeOpenAI(unknown=unknown)) as fake:
        target = Target(fake.url, "chat", dialect=Dialect(ignore_eos=True))
        found = run(plan(fake, target=target))
    assert len(found.notes) == len(notes)
    assert all(note in text for note, text in zip(notes, found.notes, strict=True))
    assert found.levels[0].done == 6
    assert found.levels[0].output_tokens == found.levels[0].chunks
    assert not fake.load[0].keys() & set(unknown)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_server_that_counts_in_its_last_chunk(endpoint: str) -> None:
    fake = FakeOpenAI(
        like_transformers=True, tokenize=False, unknown=("ignore_eos", "stream_options")
    )
    with serving(fake):
        target = Target(fake.url, endpoint, dialect=Dialect(ignore_eos=True))
        found = run(plan(fake, target=target))
    (level,) = found.levels
    assert (level.done, level.failed) == (6, 0)
    assert level.output_tokens == level.wanted_output
    assert level.input_tokens == level.wanted_input
    assert found.notes == ["The server refuses ignore_eos: answers end where the model ends them."]


def test_a_file_is_asked() -> None:
    with serving(FakeOpenAI()) as fake:
        found = run(plan(fake, entries=[Entry("one two", 3), Entry("three", None)]))
    assert {(b["messages"][0]["content"], b["max_tokens"] == 3) for b in fake.load} >= {
        ("one two", True)
    }
    assert found.levels[0].wanted_input is None
    assert found.levels[0].done == 6


def test_keys() -> None:
    with serving(FakeOpenAI(api_key="secret")) as fake:
        assert run(plan(fake, api_key="secret")).levels[0].done == 6
        with pytest.raises(ServerError, match="wants a key"):
            run(plan(fake))
        with pytest.raises(ConfigError, match="no HTTP header can hold"):
            plan(fake, api_key="a\nb")


def test_nobody_there() -> None:
    with serving(FakeOpenAI()) as fake:
        pass
    with pytest.raises(ServerError, match=r"Nobody answers at http://127\.0\.0\.1:\d+ \(Connect"):
        run(plan(fake))


def test_a_dataset_has_no_shared_prefix() -> None:
    with pytest.raises(ConfigError, match="made-up prompts"):
        plan(FakeOpenAI(), entries=[Entry("a", 1)], shared_prefix=3)
