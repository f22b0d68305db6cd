"""What a scripted engine says of itself: two stages, which work while there is a request."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable

from ppinfer.engine.state import (
    EngineState,
    LiveState,
    SequenceState,
    StageSpans,
    StageState,
    StepLabel,
)
from ppinfer.trace.clock import Activity

STEP = 20_000_000
"""Nanoseconds of a step on a stage: most of them computing, then a wait."""


def packed(spans: Iterable[tuple[int, int, int]]) -> bytes:
    """(activity, step, end) each, as a clock records them."""
    return array(
        "q", [word for kind, step, end in spans for word in (step << 4 | kind, end)]
    ).tobytes()


class FakeStages:
    """Spans from one look to the next; every step is in the other micro-batch."""

    def __init__(self) -> None:
        self.looks = self.looked_away = 0
        self._since = 0

    def live(self, state: EngineState) -> LiveState:
        now = time.perf_counter_ns()
        since, self._since = self._since or now, now
        self.looks += 1
        spans, steps = [], {}
        for stage in range(2):
            made = []
            for step in range(since // STEP - 1, now // STEP + 1):
                begin = step * STEP + stage * STEP // 2
                for kind, end in (
                    (Activity.COMPUTE, begin + STEP * 3 // 4),
                    (Activity.WAIT_INPUT, begin + STEP),
                ):
                    if not state.running:
                        kind = Activity.WAIT_PLAN
                    if since < end:
                        made.append((kind, step, min(end, now)))
                    if end >= now:
                        break
                steps[step] = StepLabel(step % 2, "decode 1")
            spans.append([StageSpans(since, packed(made), 0, 0)])
        return LiveState(now, state, spans, steps)


def fake_state(
    sequences: list[SequenceState], new_tokens: int, silent_for: float = 0.0, **fields: object
) -> EngineState:
    now = time.perf_counter()
    stages = [
        StageState(
            stage=stage, first_layer=3 * stage, last_layer=3 * stage + 3, weight_bytes=1000,
            kv_cache_bytes=500, heartbeat_age=silent_for * stage, rss_bytes=9000, steps=int(now),
            bytes_sent=int(now), compute=now / 2, wait_plan=now / 4, wait_input=now / 4,
        )
        for stage in range(2)
    ]  # fmt: skip
    given = {"running": len(sequences), "kv_blocks": 100, "kv_blocks_used": 10 * len(sequences)}
    return EngineState(
        new_tokens=new_tokens, stages=stages, sequences=sequences, **(given | fields)
    )  # type: ignore[arg-type]
