"""The limits of this machine for one model, by asking probes. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from ppinfer.bench.cases import Shape
from ppinfer.bench.limits import Arrangement, Rates, physical_seconds, rows_to_measure
from ppinfer.bench.procfs import cores
from ppinfer.bench.remote import Worker
from ppinfer.engine.cpu_time import REPEAT_ABOVE, Reading
from ppinfer.models.config import ModelConfig

ITEMSIZE = {"fp32": 4, "bf16": 2}
_TIMEOUT = 300.0
_ATTEMPTS = 4
_LEAST_BYTES, _MOST_BYTES = 64 << 20, 1 << 30
_SLACK = 2.0
"""How much longer than the physical limit a run is expected to take, before anything is known."""
_PROCESS_BYTES = 300 << 20
"""What a process needs beside weights and cache."""


def weight_bytes(model: ModelConfig, dtype: str) -> int:
    """What a pipeline of any size holds: embedding and head each in a layout of its own."""
    return model.stage_parameters(0, model.num_layers) * ITEMSIZE[dtype]


def measure_rates(model: ModelConfig, dtype: str) -> Rates:
    """Bandwidth over a buffer of the model's size (64 MB to 1 GB), and the peak of products."""
    size = min(max(weight_bytes(model, dtype), _LEAST_BYTES), _MOST_BYTES)
    with Worker("probe", threads=cores()) as worker:
        found = _undisturbed([worker], "limits", dtype=dtype, num_bytes=size, threads=cores())[0]
    return Rates(found["bandwidth"], found["peak"])


def measure_arrangements(
    model: ModelConfig, dtype: str, shapes: Sequence[Shape]
) -> list[Arrangement]:
    """All cores on one product, and each core on its own."""
    teams = sorted({1, cores()})
    return [_measure_arrangement(model, dtype, shapes, count) for count in teams]


def _measure_arrangement(
    model: ModelConfig, dtype: str, shapes: Sequence[Shape], teams: int
) -> Arrangement:
    threads = max(1, cores() // teams)
    layers: dict[int, float] = {}
    head: dict[int, float] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("probe", threads=threads)) for _ in range(teams)]
        for worker in workers:
            worker.send(
                "prepare",
                config=msgspec.to_builtins(model),
                dtype=dtype,
                parts=teams,
                threads=threads,
            )
        scale = max(worker.receive(_TIMEOUT)["scale"] for worker in workers)
        for rows in rows_to_measure(shapes, teams):
            answers = _undisturbed(workers, "linear", rows=rows)
            # Every team's micro-batch passes every team's layers; heads are shared out alike.
            layers[rows] = max(answer["layers"] for answer in answers) * scale * teams
            head[rows] = max(answer["head"] for answer in answers)
    return Arrangement(teams, layers, head)


def _undisturbed(workers: Sequence[Worker], do: str, **values: Any) -> list[dict[str, float]]:
    """All workers' answers to one request, asked again while something else takes the cores."""
    pids = [os.getpid(), *(worker.pid for worker in workers)]
    answers: list[dict[str, float]] = []
    for _ in range(_ATTEMPTS):
        before = Reading.now(pids)
        for worker in workers:
            worker.send(do, **values)
        answers = [worker.receive(_TIMEOUT) for worker in workers]
        if sum(Reading.now(pids).shares_since(before)) <= REPEAT_ABOVE:
            break
    return answers


def estimate_seconds(
    model: ModelConfig, dtype: str, shape: Shape, rates: Rates, runs: int
) -> float:
    """What so many runs will take, roughly."""
    return runs * _SLACK * physical_seconds(model, shape, ITEMSIZE[dtype], rates)


def needed_bytes(model: ModelConfig, dtype: str, stages: int, tokens: int) -> int:
    """Memory of one row (``stages`` 0 for Hugging Face), with a cache for ``tokens``."""
    cache = tokens * model.kv_bytes_per_token(model.num_layers, ITEMSIZE[dtype])
    processes = stages + 1 if stages else 1
    return weight_bytes(model, dtype) + cache + processes * _PROCESS_BYTES
