"""A lane cut into equal columns of time, and what each column holds."""

from __future__ import annotations

from typing import TypeAlias

from ppinfer.trace.model import Lane, Span, Trace

Kind: TypeAlias = tuple[str, int, bool]
"""An activity, and where it is computing also the slot and whether its step is a decode step."""


def kind_of(span: Span, trace: Trace) -> Kind:
    """Computing of a step that the trace does not know counts as decoding in slot 0."""
    if span.activity != "compute":
        return span.activity, 0, True
    facts = trace.steps.get(span.step)
    return ("compute", 0, True) if facts is None else ("compute", facts.slot, facts.is_decode)


def cut(lane: Lane, trace: Trace, start: int, end: int, count: int) -> list[dict[Kind, float]]:
    """Shares of each of ``count`` columns between two moments (nanoseconds), by kind."""
    columns: list[dict[Kind, float]] = [{} for _ in range(count)]
    width = max(end - start, 1) / count
    for span in lane.spans:
        if span.end <= start:
            continue
        if span.start >= end:
            break
        kind = kind_of(span, trace)
        low, high = (max(span.start, start) - start) / width, (min(span.end, end) - start) / width
        for column in range(int(low), min(int(high) + 1, count)):
            share = min(high, column + 1) - max(low, column)
            if share > 0:
                columns[column][kind] = columns[column].get(kind, 0.0) + share
    return columns
