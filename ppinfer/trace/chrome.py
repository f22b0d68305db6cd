"""The file of a trace: Chrome's trace event format, which Perfetto opens too.

One process with a thread a lane; a box ("X") a span; arrows ("s" to "f") follow what was sent:
a plan to stage 0, hidden states from stage to stage, sampled ids to stage 0, a result to the
driver. What the viewers ignore (``cat``, ``args``, ``otherData``) holds all that is needed to read
the trace back.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ppinfer.errors import TraceError
from ppinfer.trace.model import Lane, Span, StepFacts, Trace, slot_letter
from ppinfer.version import __version__

_FORMAT = 1
_PID = 1
_COLOURS = {
    "wait_plan": "terrible",
    "wait_input": "bad",
    "send": "yellow",
    "prepare": "grey",
    "sample": "olive",
    "wait": "white",
}
"""Names that chrome://tracing knows; Perfetto colours by the box's name."""

_TITLES = {"wait_plan": "wait for plan", "wait_input": "wait for input"}


def require_writable(path: Path) -> None:
    """Raises ``TraceError`` where a trace could not be written to ``path``, before any run."""
    if path.exists() and not path.is_file():
        raise TraceError(f"The trace cannot be written to {path}: it is no regular file.")
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise TraceError(f"The trace cannot be written to {path}: {error.strerror}.") from error


def write_trace(trace: Trace, path: Path) -> None:
    """Write event by event; the file is there completely or not at all.

    Raises:
        TraceError: it cannot be written.
    """
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    encoder = msgspec.json.Encoder()
    try:
        with draft.open("wb") as file:
            file.write(b'{"displayTimeUnit":"ms","otherData":')
            file.write(encoder.encode(_header(trace)))
            file.write(b',"traceEvents":[')
            separator = b"\n"
            for event in _events(trace):
                file.write(separator)
                file.write(encoder.encode(event))
                separator = b",\n"
            file.write(b"\n]}\n")
        draft.replace(path)
    except OSError as error:
        raise TraceError(f"The trace cannot be written to {path}: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _header(trace: Trace) -> dict[str, Any]:
    lanes = [
        {"name": lane.name, "dropped": lane.dropped, "clock_error": lane.clock_error}
        for lane in trace.lanes
    ]
    return {"ppinfer": __version__, "format": _FORMAT, "info": trace.info, "lanes": lanes}


def _events(trace: Trace) -> Iterator[dict[str, Any]]:
    yield _meta("process_name", 0, name=f"ppinfer {trace.title}".strip())
    for tid, lane in enumerate(trace.lanes):
        yield _meta("thread_name", tid, name=lane.name)
        yield _meta("thread_sort_index", tid, sort_index=tid)
    for tid, lane in enumerate(trace.lanes):
        for span in lane.spans:
            yield _box(tid, span, trace.steps.get(span.step))
    yield from _arrows(trace)


def _meta(name: str, tid: int, /, **args: Any) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": _PID, "tid": tid, "args": args}


def _box(tid: int, span: Span, facts: StepFacts | None) -> dict[str, Any]:
    name = _TITLES.get(span.activity, span.activity)
    event: dict[str, Any] = {"name": name, "cat": span.activity, "ph": "X", "pid": _PID}
    event |= {"tid": tid, "ts": span.start / 1e3, "dur": (span.end - span.start) / 1e3}
    if span.activity in _COLOURS:
        event["cname"] = _COLOURS[span.activity]
    if span.step >= 0:
        event["args"] = {"step": span.step}
        if facts is not None:
            event["args"] |= facts._asdict()
            if span.activity == "compute":
                event["name"] = f"{slot_letter(facts.slot)} {facts.words}"
    return event


class _Ends:
    """Where arrows begin and end in a lane: step to nanoseconds."""

    def __init__(self, lane: Lane) -> None:
        self.first: dict[str, dict[int, int]] = {}
        self.last: dict[str, dict[int, int]] = {}
        for span in lane.spans:
            if span.step >= 0:
                self.first.setdefault(span.activity, {}).setdefault(span.step, span.start)
                self.last.setdefault(span.activity, {})[span.step] = span.start


def _arrows(trace: Trace) -> Iterator[dict[str, Any]]:
    driver, *stages = (_Ends(lane) for lane in trace.lanes)
    arrows: list[tuple[str, int, dict[int, int], int, dict[int, int]]] = []
    for tid, (one, other) in enumerate(itertools.pairwise(stages), 1):
        sent, begun = one.last.get("send", {}), other.first.get("compute", {})
        arrows.append(("hidden states", tid, sent, tid + 1, begun))
    if stages:
        sent = stages[-1].last.get("send", {})
        waited = stages[0].first.get("wait_input", {})
        begun = {
            step: at for step, at in stages[0].first.get("compute", {}).items() if step in waited
        }
        before = _previous_of_slot(trace.steps)
        ids = {step: sent[before[step]] for step in begun if before.get(step) in sent}
        arrows += [
            ("plan", 0, driver.last.get("plan", {}), 1, stages[0].first.get("prepare", {})),
            ("sampled ids", len(stages), ids, 1, begun),
            ("result", len(stages), sent, 0, driver.first.get("commit", {})),
        ]
    number = 0
    for name, source, starts, target, ends in arrows:
        for step, start in starts.items():
            if step in ends:
                number += 1
                event = {"name": name, "cat": "flow", "id": number, "pid": _PID}
                yield event | {"ph": "s", "tid": source, "ts": start / 1e3}
                end = max(ends[step], start)  # clocks of two hosts may disagree a little
                yield event | {"ph": "f", "bp": "e", "tid": target, "ts": end / 1e3}


def _previous_of_slot(steps: dict[int, StepFacts]) -> dict[int, int]:
    latest: dict[int, int] = {}
    found = {}
    for step in sorted(steps):
        slot = steps[step].slot
        if slot in latest:
            found[step] = latest[slot]
        latest[slot] = step
    return found


# ---------------------------------------------------------------- reading


class _LaneHeader(msgspec.Struct):
    name: str
    dropped: int
    clock_error: int


class _Header(msgspec.Struct):
    format: int
    info: dict[str, str]
    lanes: list[_LaneHeader]


class _Event(msgspec.Struct):
    ph: str
    cat: str = ""
    tid: int = 0
    ts: float = 0.0
    dur: float = 0.0
    args: dict[str, Any] = {}


class _File(msgspec.Struct):
    header: _Header = msgspec.field(name="otherData")
    events: list[_Event] = msgspec.field(name="traceEvents")


def read_trace(path: Path) -> Trace:
    """Raises ``TraceError`` where the file cannot be read, or is no trace of ppinfer."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} is no trace of ppinfer: {error}.") from error
    header = found.header
    if header.format != _FORMAT:
        raise TraceError(
            f"{path} is a trace of format {header.format}, and this version reads {_FORMAT}."
        )
    lanes = [Lane(lane.name, [], lane.dropped, lane.clock_error) for lane in header.lanes]
    steps: dict[int, StepFacts] = {}
    try:
        for event in found.events:
            if event.ph == "X":
                start = round(event.ts * 1e3)
                step = event.args.get("step", -1)
                span = Span(event.cat, step, start, start + round(event.dur * 1e3))
                lanes[event.tid].spans.append(span)
                if "slot" in event.args and step not in steps:
                    steps[step] = StepFacts(
                        **{name: event.args[name] for name in StepFacts._fields}
                    )
        driver, *stages = lanes
    except (LookupError, TypeError, ValueError) as error:
        raise TraceError(f"{path} is a damaged trace: {type(error).__name__}: {error}.") from error
    return Trace(stages, driver, steps, header.info)
