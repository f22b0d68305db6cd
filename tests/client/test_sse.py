"""Server-sent events, wherever the network cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.client.sse import EventParser

LINES = st.lists(
    st.binary(max_size=12).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"")),
    min_size=1,
    max_size=4,
)
NOISE = st.sampled_from([b"", b": a comment\n", b"event: x\n", b"id: 3\r\n", b"retry\n"])


@given(
    st.lists(st.tuples(LINES, NOISE, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=6),
    st.randoms(use_true_random=False),
)
def test_events_come_out_as_they_went_in(events: list, source) -> None:  # type: ignore[no-untyped-def, type-arg]
    stream = b"".join(
        noise + b"".join(b"data: " + line + end for line in lines) + end
        for lines, noise, end in events
    )
    parser, found, at = EventParser(), [], 0
    while at < len(stream):
        size = source.randint(0, 9)
        found += parser.feed(stream[at : at + size])
        at += size
    assert found == [b"\n".join(lines) for lines, _, _ in events]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_where_the_bytes_are_cut_changes_nothing(stream: bytes, cut: int) -> None:
    whole, parts = EventParser(), EventParser()
    assert whole.feed(stream) == parts.feed(stream[:cut]) + parts.feed(stream[cut:])


def test_details_of_the_standard() -> None:
    parser = EventParser()
    assert parser.feed(b"\xef\xbb\xbfdata:a\ndata\ndata:  b\n\ndatum: c\n\n") == [b"a\n\n b"]
    assert parser.feed(b"data: unfinished") == []
    assert parser.feed(b"\r") == []
    assert parser.feed(b"\n\r\n") == [b"unfinished"]


def test_an_event_that_does_not_end_is_refused() -> None:
    parser = EventParser()
    with pytest.raises(ValueError, match="does not end"):
        for _ in range(20):
            parser.feed(b"x" * 2**20)
