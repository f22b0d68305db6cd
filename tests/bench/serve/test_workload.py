"""Prompts and lengths."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.bench.serve.lengths import Lengths, parse_lengths
from ppinfer.bench.serve.words import WORDS
from ppinfer.bench.serve.workload import Ask, Entry, FromFile, Gauge, MadeUp
from ppinfer.errors import ConfigError


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers())
def test_a_range_is_kept(one: int, other: int, seed: int) -> None:
    low, high = sorted((one, other))
    assert low <= parse_lengths(f"{low}-{high}", "x").draw(random.Random(seed)) <= high
    assert parse_lengths(str(low), "x").draw(random.Random(seed)) == low


@given(st.floats(1, 1e6), st.floats(0, 100), st.integers())
def test_lognormal_lengths_have_ends(median: float, sigma: float, seed: int) -> None:
    lengths = parse_lengths(f"lognormal:{median}:{sigma}:1000000", "x")
    assert 1 <= lengths.draw(random.Random(seed)) <= 10**6


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "5-4", "1-", "-", "a", "1.5", "²", "lognormal:1", "lognormal:0:1",
     "lognormal:nan:1", "lognormal:9:1:8", "lognormal:9:-1", "1-2-3", "99999999"],
)  # fmt: skip
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="x must be a number of tokens"):
        parse_lengths(text, "x")


@given(st.integers(1, 500), st.integers(0, 200), st.integers(0, 50), st.integers(0, 50))
def test_made_up_prompts(tokens: int, prefix: int, index: int, number: int) -> None:
    made = MadeUp(Gauge(), Lengths(tokens, tokens), Lengths(1, 9), 0, prefix)
    ask = made.ask(index, number)
    assert ask == made.ask(index, number)
    assert ask.prompt_tokens == tokens + prefix
    assert len(ask.text.split()) == 1 + tokens + prefix
    assert ask.max_tokens == made.ask(index, number + 1).max_tokens
    words, others = (a.text.split()[1:] for a in (ask, made.ask(index, number + 1)))
    assert words[:prefix] == others[:prefix]
    if tokens > 5:
        assert words[prefix:] != others[prefix:]


def test_the_gauge_counts_the_overhead() -> None:
    made = MadeUp(Gauge(WORDS, per_word=2.0, overhead=20.0), Lengths(120, 120), Lengths(1, 1))
    assert len(made.ask(0, 0).text.split()) == 1 + 50


def test_words_are_words() -> None:
    assert len(set(WORDS)) == len(WORDS) > 250
    assert all(word.isascii() and word.islower() for word in WORDS)


def test_a_file_is_gone_through_in_some_order_again_and_again() -> None:
    entries = [Entry(str(number), number or None) for number in range(10)]
    source = FromFile(entries, Lengths(7, 7), seed=3)
    asked = [source.ask(index, index) for index in range(20)]
    for turn in (asked[:10], asked[10:]):
        assert sorted(ask.text for ask in turn) == sorted(e.prompt for e in entries)  # type: ignore[type-var]
    assert asked[:10] != asked[10:]
    assert {ask.max_tokens for ask in asked if ask.text == "0"} == {7}
    assert {ask.max_tokens for ask in asked if ask.text == "4"} == {4}


def test_either_endpoint_can_be_asked_either_kind() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert Ask(messages, 1).text == "a\n"
    assert Ask("b", 1).messages == [{"role": "user", "content": "b"}]
