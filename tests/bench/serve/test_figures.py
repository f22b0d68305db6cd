"""Percentiles, goodput, and what a stream says."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from ppinfer.bench.serve.answer import AnswerReader
from ppinfer.bench.serve.arrivals import Load
from ppinfer.bench.serve.figures import Percentiles, figures
from ppinfer.bench.serve.objective import parse_objective
from ppinfer.bench.serve.records import RequestRecord
from ppinfer.bench.serve.target import Dialect, Target
from ppinfer.bench.serve.workload import Ask
from ppinfer.client.chunks import AnswerError
from ppinfer.errors import ConfigError


def record(intended: float, chunks: list[float], status: str = "ok") -> RequestRecord:
    return RequestRecord(
        intended, sent=intended + 0.5, ended=chunks[-1] if chunks else intended, chunks=chunks,
        input_tokens=10, output_tokens=len(chunks), wanted_input=10, wanted_output=4,
        status=status, why="so" if status != "ok" else "", has_usage=True,
    )  # fmt: skip


def test_times_count_from_the_intended_arrival() -> None:
    one = record(1.0, [3.0, 3.5, 4.5])
    assert (one.queue, one.ttft, one.e2e, one.tpot) == (0.5, 2.0, 3.5, 0.75)
    assert one.gaps == [0.5, 1.0]
    assert one.measured() == {"ttft": 2.0, "itl": 1.0, "tpot": 0.75, "e2e": 3.5}


def test_a_level() -> None:
    records = [
        record(0.0, [1.0, 2.0]),
        record(1.0, [4.0, 4.5, 5.0]),
        record(2.0, [], "HTTP 503"),
        record(3.0, [], "cut off"),
    ]
    level = figures(Load(rate=2.0), records, 10.0, 0.5, parse_objective("ttft=1s"))
    assert (level.requests, level.done, level.failed, level.cut_off) == (4, 2, 1, 1)
    assert (level.failures, level.why) == ({"HTTP 503": 1}, {"HTTP 503": "so"})
    assert (level.input_per_second, level.output_per_second) == (2.0, 0.5)
    assert (level.good, level.goodput, level.client_share) == (1, 0.1, 0.05)
    assert level.ttft == Percentiles(1.0, 3.0, 3.0, 2.0, 3.0)
    assert level.itl is not None
    assert level.itl.max == 1.0
    json.loads(msgspec.json.encode(level))


def test_a_level_of_nothing() -> None:
    level = figures(Load(rate=math.inf), [], 0.0, 0.0, None)
    assert (level.name, level.rate, level.ttft, level.goodput) == ("inf", None, None, None)


def test_objectives() -> None:
    objective = parse_objective("ttft=500ms, itl=0.05s")
    assert objective.limits == {"ttft": 0.5, "itl": 0.05}
    assert objective.is_met({"ttft": 0.5, "itl": None, "tpot": 9.0})
    assert not objective.is_met({"ttft": 0.6, "itl": None})
    for text in ("", "ttft", "ttft=5", "speed=1ms", "ttft=-1ms", "ttft=1ms,"):
        with pytest.raises(ConfigError, match="slo must be limits"):
            parse_objective(text)


def read(*events: str) -> RequestRecord:
    made = RequestRecord(0.0)
    reader = AnswerReader(made)
    for at, event in enumerate(events, 1):
        reader.feed(f"data: {event}\n\n".encode(), float(at))
    reader.close()
    return made


def chat(text: str | None, end: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": end}]})


def test_only_text_counts_as_an_answer() -> None:
    usage = '{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}'
    found = read(chat(""), chat("a"), chat("b"), chat(None, "stop"), usage, "[DONE]")
    assert (found.status, found.chunks, found.finish_reason) == ("ok", [2.0, 3.0], "stop")
    assert (found.input_tokens, found.output_tokens, found.has_usage) == (7, 9, True)
    thinking = '{"choices": [{"delta": {"reasoning_content": "hm"}}]}'
    assert read(thinking, "[DONE]").chunks == [1.0]
    calls = (
        '{"choices": [{"delta": {"content": null, "tool_calls": [{"index": 0}]}}], "error": null}'
    )
    assert read(calls, "[DONE]").chunks == [1.0]
    assert read('{"choices": [{"text": "a"}], "usage": null}', "[DONE]").output_tokens == 1
    nulls = '{"choices": null, "usage": {"prompt_tokens": null, "completion_tokens": 2}}'
    assert read(nulls, "[DONE]").output_tokens == 2


@pytest.mark.parametrize(
    ("event", "status", "why"),
    [
        ('{"error": {"message": "out of memory"}}', "error in stream", "out of memory"),
        ('{"error": "no room"}', "error in stream", "no room"),
        ("{", "malformed", "truncated"),
        ('{"choices": 3}', "malformed", "Expected"),
        (chat("a"), "disconnected", "in the middle"),
    ],
)
def test_bad_streams(event: str, status: str, why: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read(event)
    assert caught.value.args[0] == status
    assert why in caught.value.args[1]


def test_bodies() -> None:
    target = Target("http://x", "chat", "m", Dialect(ignore_eos=True))
    assert json.loads(target.body(Ask("hi", 3))) == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3,
        "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }  # fmt: skip
    plain = json.loads(
        Target("http://x", "completions", "m", Dialect(usage=False)).body(Ask("hi", 3))
    )
    assert plain["prompt"] == "hi"
    assert not plain.keys() & {"stream_options", "ignore_eos", "messages"}
