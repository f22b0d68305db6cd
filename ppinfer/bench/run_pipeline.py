"""The pipeline's row: a ``PPInferEngine``, timed from outside by when its tokens come."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgspec

from ppinfer.bench.procfs import peak_bytes
from ppinfer.bench.timing import Watched, summarise
from ppinfer.engine.engine import PPInferEngine
from ppinfer.sampling import SamplingParams


class PipelineRunner:
    def __init__(self) -> None:
        self._engine: PPInferEngine | None = None

    def load(self, model: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Bring the pipeline up; what it decided, what loading cost."""
        started = time.perf_counter()
        self._engine = engine = PPInferEngine(model, **settings)
        return {
            "seconds": time.perf_counter() - started,
            "startup": engine.startup_seconds,
            "loaded": [msgspec.structs.asdict(stage) for stage in engine.loaded],
            "notes": list(engine.notes),
            "choices": list(engine.choices),
            "settings": msgspec.to_builtins(dataclasses.asdict(engine.config)),
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Complete all prompts once; see ``records.Run``."""
        assert self._engine is not None
        engine = self._engine
        stages = [pid for pid in engine.stage_pids if pid is not None]
        times: list[list[float]] = [[] for _ in prompts]
        with Watched(stages) as watched:
            stream = engine.stream(prompts, SamplingParams(max_tokens=new, ignore_eos=True))
            for delta in stream:
                now = time.perf_counter()
                times[delta.index].extend([now] * len(delta.token_ids))
        report = engine.report()
        return summarise(times, new, watched) | {
            "peak_bytes": [peak_bytes(pid) for pid in stages],
            "busy": [stage.busy_share for stage in report.stages],
            "steps": [stage.steps for stage in report.stages],
            "cached_tokens": report.cached_tokens,
            "layers": [stage.last_layer - stage.first_layer for stage in report.stages],
        }

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
