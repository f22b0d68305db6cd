"""A short calibration of an engine that stands, so that what it will do can be predicted."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ppinfer.engine.engine import PPInferEngine
from ppinfer.engine.modelled import pipeline_model
from ppinfer.planner.correction import Comparison
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import Arrival, static_batch
from ppinfer.sampling import SamplingParams
from ppinfer.trace.model import Trace

ROUNDS = 3
"""How often each calibrating run is made: what disturbs one is over by the other."""

_PROMPT, _NEW, _NEW_OF_FEW = 24, 12, 24
_FEW = 4
_LONG = 1024

_runs = itertools.count()
"""Every run has prompts of its own, or they would be found in the prefix cache."""


@dataclass(frozen=True)
class RealRun:
    """``seconds`` from the first request to the last token."""

    seconds: float
    new_tokens: int
    trace: Trace

    @property
    def throughput(self) -> float:
        return self.new_tokens / self.seconds


def calibrate(engine: PPInferEngine, rounds: int = ROUNDS) -> PipelineModel:
    """Run a few short loads, simulate them, and correct the model by the difference.

    Raises:
        ConfigError: the engine measured nothing at its start.
    """
    assert engine.pipeline is not None
    plain = pipeline_model(engine.pipeline, engine.config)
    found = Comparison()
    simulated = [(load, _traced(plain, load)) for load in loads(engine)]
    for _ in range(rounds):
        for load, trace in simulated:
            found.add(run(engine, load).trace, trace)
    return pipeline_model(engine.pipeline, engine.config, found.correction())


def loads(engine: PPInferEngine) -> list[list[Arrival]]:
    """Decode steps of several sizes, and a long prompt."""
    most = engine.config.max_sequences
    sizes = sorted({n for n in (1, 4, 16, 64) if n < most} | {most})
    long = min(_LONG, engine.limits.max_model_len // 2)
    return [
        *(static_batch(n, _PROMPT, _NEW if n > _FEW else _NEW_OF_FEW) for n in sizes),
        static_batch(1, long, 2),
    ]


def _traced(model: PipelineModel, load: Sequence[Arrival]) -> Trace:
    trace = simulate(model, load, trace=True).trace
    assert trace is not None
    return trace


def run(engine: PPInferEngine, load: Sequence[Arrival]) -> RealRun:
    """Give a load to an idle engine, each request when its time comes, and trace it."""
    draw = random.Random(next(_runs))
    prompts = [
        [draw.randrange(engine.limits.vocab_size) for _ in range(arrival.prompt)]
        for arrival in load
    ]
    params = [SamplingParams(max_tokens=arrival.new, ignore_eos=True) for arrival in load]
    tracing = engine.trace()
    with tracing:
        started = time.perf_counter()
        if not any(arrival.streamed for arrival in load):
            engine.generate(prompts, params)
        else:
            _at_their_times(engine, load, prompts, params)
        seconds = time.perf_counter() - started
    assert tracing.trace is not None
    return RealRun(seconds, sum(arrival.new for arrival in load), tracing.trace)


def _at_their_times(
    engine: PPInferEngine,
    load: Sequence[Arrival],
    prompts: list[list[int]],
    params: list[SamplingParams],
) -> None:
    """Each request is read by a thread of its own, as clients of a server would."""
    failures: list[BaseException] = []
    first, started = load[0].at, time.perf_counter()

    def read(index: int) -> None:
        try:
            time.sleep(max(0.0, started + load[index].at - first - time.perf_counter()))
            for _ in engine.stream([prompts[index]], params[index]):
                pass
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(load))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if failures:
        raise failures[0]
