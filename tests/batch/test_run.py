"""Whole runs without a model: order, ends, and going on after any of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.batches import FakeAnswerer, outcomes, request, run, write_batch

from ppinfer.batch.run import open_journal, run_batch, survey
from ppinfer.errors import BatchError, StageError

MIXED = [
    request("a"), "", "{broken", request("bad"), request("same"), request("same"),
    request("x", url="/v1/none"), request("b"),
]  # fmt: skip


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_every_line_is_told_of(tmp_path: Path, target: Path) -> None:
    """Blank ones aside; of the same ``custom_id`` there may be several."""
    summary = run(write_batch(tmp_path / "in.jsonl", MIXED), target)
    assert (summary.requests, summary.succeeded, summary.failed, summary.invalid) == (7, 4, 1, 2)
    assert (summary.prompt_tokens, summary.completion_tokens) == (8, 12)
    found = outcomes(target)
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 7]
    assert found[1]["response"] == {
        "status_code": 200, "request_id": "req_1",
        "body": {"text": "a", "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    }  # fmt: skip
    assert found[2]["custom_id"] is found[2]["response"] is None
    assert found[2]["error"] == {"code": "invalid_line", "message": "The line is not valid JSON."}
    assert found[3]["response"]["status_code"] == 400
    assert found[4]["custom_id"] == found[5]["custom_id"] == "same"
    assert found[6]["custom_id"] == "x"


def test_many_at_once_and_in_the_order_of_their_ends(tmp_path: Path, target: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [request(str(n)) for n in range(30)])
    answerer = FakeAnswerer()
    answerer.slow = {"0"}
    run(source, target, answerer, in_flight=5)
    assert answerer.most_at_once == 5
    assert answerer.asked == [str(n) for n in range(30)]  # no line is read before its turn
    assert list(outcomes(target))[-1] == 1


@pytest.mark.parametrize("in_flight", [1, 3])
def test_going_on_from_anywhere(tmp_path: Path, target: Path, in_flight: int) -> None:
    """Wherever the output was cut off, what is whole stays, and the rest is asked for once."""
    source = write_batch(tmp_path / "in.jsonl", MIXED[:6])
    run(source, target, in_flight=in_flight)
    whole = target.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole), 29), *ends, *(end + 1 for end in ends)}):
        target.write_bytes(whole[:cut])
        kept = whole[: whole[:cut].rfind(b"\n") + 1]
        answerer = FakeAnswerer()
        summary = run(source, target, answerer, in_flight)
        assert target.read_bytes().startswith(kept)
        assert summary.done_before == kept.count(b"\n")
        assert sorted(outcomes(target)) == [1, 2, 3, 4, 5]
        asked = len(answerer.asked) + summary.invalid + summary.done_before
        assert asked == summary.requests == 5


def test_an_error_ends_the_run_and_the_next_goes_on(tmp_path: Path, target: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [request(str(n)) for n in range(30)])
    answerer = FakeAnswerer((10, StageError("Stage 1 died.", 1)))
    with pytest.raises(StageError, match="Stage 1"):
        run(source, target, answerer)
    done = outcomes(target)
    assert 5 <= len(done) <= 10
    again = FakeAnswerer()
    assert run(source, target, again).done_before == len(done)
    assert sorted(outcomes(target)) == list(range(1, 31))
    assert len(again.asked) == 30 - len(done)


def test_lines_may_be_added_but_not_changed(tmp_path: Path, target: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [request("a"), request("b")])
    run(source, target)
    before = target.read_bytes()
    for lines in ([request("a"), request("c")], [request("b"), request("a")], [request("a")]):
        with pytest.raises(BatchError, match="answers to other requests"):
            run(write_batch(source, lines), target)
    assert target.read_bytes() == before
    lines = [request("a"), request("b"), request("c")]
    assert run(write_batch(source, lines), target).succeeded == 1


def test_what_is_held_does_not_grow(tmp_path: Path, target: Path) -> None:
    """Two requests stay at work while 3,000 go by."""
    source = write_batch(tmp_path / "in.jsonl", [request(str(n)) for n in range(3000)])
    answerer = FakeAnswerer()
    answerer.slow = {"0", "7"}
    most = 0

    async def work() -> None:
        with open_journal(source, target) as journal:

            def look(*_: object) -> None:
                nonlocal most
                most = max(most, journal.done.num_stretches)

            summary = survey(source, journal, look)
            await run_batch(source, journal, answerer, summary, 8, look)

    asyncio.run(work())
    assert 2 <= most <= 8
    assert len(outcomes(target)) == 3000


def test_an_empty_file(tmp_path: Path, target: Path) -> None:
    assert run(write_batch(tmp_path / "in.jsonl", [""]), target).requests == 0
    assert target.read_bytes() == b""
