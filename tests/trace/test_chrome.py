"""The file of a trace: what viewers require of it, and that it reads back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.traces import check_events, two_stages

from ppinfer.errors import TraceError
from ppinfer.trace import chrome
from ppinfer.trace.chrome import read_trace, require_writable, write_trace
from ppinfer.trace.model import Lane, Span, StepFacts, Trace, slot_letter


def written(trace: Trace, folder: Path) -> list[dict[str, Any]]:
    write_trace(trace, folder / "trace.json")
    found: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return found


def test_events_are_what_viewers_need(tmp_path: Path) -> None:
    events = written(two_stages(), tmp_path)
    check_events(events)
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {"driver", "stage 0", "stage 1"}
    hidden = [e for e in events if e["name"] == "hidden states" and e["ph"] == "s"]
    assert len(hidden) == 22
    assert {e["tid"] for e in hidden} == {1}
    waits = {e["cat"]: e["cname"] for e in events if e.get("cat", "").startswith("wait_")}
    assert len(set(waits.values())) == 2
    assert not [e for e in events if e["name"] == "sampled ids"]  # stage 0 never waits for any


def test_a_steps_box_says_what_it_holds(tmp_path: Path) -> None:
    boxes = [e for e in written(two_stages(), tmp_path) if e.get("cat") == "compute"]
    assert boxes[0]["name"] == "A prefill 30"
    assert boxes[-1]["name"] == "B decode 3"
    expected = {"step": 0, "slot": 0, "tokens": 30, "sequences": 3, "decodes": 0}
    assert boxes[0]["args"] == expected


def test_ids_that_stage_0_waits_for_come_from_the_last_stage(tmp_path: Path) -> None:
    trace = two_stages()
    spans = trace.stages[0].spans
    index = next(n for n, s in enumerate(spans) if s == ("prepare", 7, s.start, s.end))
    spans[index] = spans[index]._replace(activity="wait_input")
    (start, finish) = [e for e in written(trace, tmp_path) if e["name"] == "sampled ids"]
    sent = next(s for s in trace.stages[1].spans if s.activity == "send" and s.step == 5)
    assert (start["tid"], start["ts"]) == (2, sent.start / 1e3)
    assert (finish["tid"], finish["ts"]) == (1, spans[index + 1].start / 1e3)


def test_a_trace_reads_back_as_it_was(tmp_path: Path) -> None:
    trace = two_stages()
    trace.stages[1].dropped, trace.stages[1].clock_error = 5, 77
    trace.stages[0].spans.append(Span("wait_plan", -1, 10**15 + 1, 10**15 + 12_345_679))
    write_trace(trace, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json") == trace


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no trace of ppinfer"),
        (b"\xff\xfe", "is no trace of ppinfer"),
        (b"[]", "is no trace of ppinfer"),
        (b'{"traceEvents": []}', "is no trace of ppinfer"),
        (b'{"traceEvents":[],"otherData":{"format":9,"info":{},"lanes":[]}}', "format 9"),
        (b'{"traceEvents":[],"otherData":{"format":1,"info":{},"lanes":[]}}', "damaged"),
        (
            b'{"traceEvents":[{"ph":"X","tid":3}],"otherData":{"format":1,"info":{},"lanes":'
            b'[{"name":"driver","dropped":0,"clock_error":0}]}}',
            "damaged",
        ),
    ],
)
def test_what_is_no_trace_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(content)
    with pytest.raises(TraceError, match=words):
        read_trace(file)


def test_half_a_trace_is_none(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    write_trace(two_stages(), file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(TraceError, match="is no trace"):
        read_trace(file)
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")


def test_where_a_trace_cannot_go_is_told_before(tmp_path: Path) -> None:
    require_writable(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceError, match="No such file"):
        require_writable(tmp_path / "none" / "t.json")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(TraceError, match="no regular file"):
            require_writable(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.json"
    file.write_text("old")

    def fail(_: Trace) -> Any:
        yield {}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chrome, "_events", fail)
    with pytest.raises(TraceError, match="No space left"):
        write_trace(two_stages(), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_trace_has_a_file(tmp_path: Path) -> None:
    trace = Trace([Lane("stage 0")], Lane("driver"))
    write_trace(trace, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json") == trace


def test_words_and_letters() -> None:
    assert StepFacts(0, 12, 2, 1).words == "prefill 11 + decode 1"
    assert StepFacts(0, 0, 0, 0).words == "nothing"
    assert [slot_letter(slot) for slot in (0, 25, 26, 53)] == ["A", "Z", "A1", "B2"]
