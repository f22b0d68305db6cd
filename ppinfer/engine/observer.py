"""Puts together what is known of an engine at one moment. Changes nothing in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from ppinfer.engine.live import LiveRequest
from ppinfer.engine.report import StageLayout
from ppinfer.engine.state import (
    EngineState,
    LiveState,
    SequencePhase,
    SequenceState,
    StageSpans,
    StageState,
    StepLabel,
)
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.tally import Tally
from ppinfer.engine.tracing import Tracer
from ppinfer.engine.window import Meter
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.sequence import Sequence
from ppinfer.trace.clock import DriverActivity

_SAID = (
    "rss_bytes", "steps", "bytes_sent", "compute", "sample", "prepare", "wait_plan", "wait_input",
    "send",
)  # fmt: skip
"""What a stage says of itself."""


@dataclass(frozen=True, slots=True)
class Observer:
    """Of a driver; its thread alone calls it."""

    layouts: list[StageLayout]
    manager: MicroBatchManager
    supervisor: Supervisor
    meter: Meter
    tracer: Tracer
    tally: Tally
    requests: Mapping[int, LiveRequest]

    def state(self) -> EngineState:
        manager, tally = self.manager, self.tally
        activities = [activity.name.lower() for activity in DriverActivity]
        return EngineState(
            running=manager.num_running,
            waiting=manager.num_waiting,
            kv_blocks=manager.pool.num_blocks,
            kv_blocks_used=manager.pool.num_used,
            prompt_tokens=tally.prompt_tokens,
            cached_tokens=manager.memory.cached_tokens,
            queried_tokens=manager.memory.queried_tokens,
            new_tokens=tally.new_tokens,
            preemptions=manager.num_preemptions,
            finished=tally.finished.copy(),
            latency=tally.latency.copy(),
            driver_seconds=dict(zip(activities, self.tracer.clock.seconds(), strict=True)),
            stages=self._stages(),
            sequences=self._sequences(),
        )

    def look(self, future: Future[None]) -> None:
        """Resolve ``future`` once every stage has told its clock, and then what it did."""
        self.meter.refresh(Future())
        self.tracer.look(future)

    def live(self) -> LiveState:
        spans: list[list[StageSpans]] = []
        labels: dict[int, StepLabel] = {}
        seen = self.tracer.seen()
        if seen is not None and seen.has_begun:
            parts, steps = seen.take()
            spans = [
                [StageSpans(part.start, part.spans, part.dropped, shift) for part in of_stage]
                for of_stage, (shift, _) in zip(parts, seen.shifts, strict=True)
            ]
            labels = {step: StepLabel(facts.slot, facts.words) for step, facts in steps.items()}
        return LiveState(time.perf_counter_ns(), self.state(), spans, labels)

    def _stages(self) -> list[StageState]:
        stages = []
        for number, (layout, silence) in enumerate(
            zip(self.layouts, self.supervisor.silence(), strict=True)
        ):
            said = self.meter.latest.get(number)
            told = {} if said is None else {name: getattr(said, name) for name in _SAID}
            stages.append(
                StageState(
                    stage=number,
                    first_layer=layout.first_layer,
                    last_layer=layout.last_layer,
                    weight_bytes=layout.weight_bytes,
                    kv_cache_bytes=layout.kv_cache_bytes,
                    heartbeat_age=silence,
                    **told,
                )
            )
        return stages

    def _sequences(self) -> list[SequenceState]:
        now = time.perf_counter()
        return [
            SequenceState(
                seq.seq_id, _phase(seq), now - live.arrived, seq.prompt_len, seq.num_output
            )
            for seq in self.manager.sequences
            if (live := self.requests.get(seq.seq_id)) is not None
        ]


def _phase(seq: Sequence) -> SequencePhase:
    if seq.slot is None:
        return "waiting"
    return "prefill" if seq.is_prefilling else "decode"
