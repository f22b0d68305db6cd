"""What this machine does at its best, measured in a process of its own.

Every figure is the best of several repetitions: a limit is what can be reached, not what was usual.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from ppinfer.kernels.linear import Linear
from ppinfer.kernels.native import library
from ppinfer.models.config import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SECONDS = 0.15
"""How long one figure is measured, at least three repetitions."""
_PRODUCT_SIZES = (1024, 2048)
_MOST_WEIGHTS = 1 << 30
"""Bytes of layers that are cycled over; a larger model is measured on a part of it."""


class Probe:
    def __init__(self) -> None:
        self._layers: list[list[Linear]] = []
        self._head: Linear | None = None

    def limits(self, dtype: str, num_bytes: int, threads: int) -> dict[str, float]:
        """Bytes/s read out of a buffer of ``num_bytes``, operations/s of a matrix product."""
        torch.set_num_threads(threads)
        return {
            "bandwidth": read_bandwidth(num_bytes),
            "peak": matrix_rate(DTYPES[dtype]),
        }

    def prepare(
        self, config: dict[str, Any], dtype: str, parts: int, threads: int
    ) -> dict[str, float]:
        """Make linear layers of a model's shapes, ``1 / parts`` of its layers and all of its head.

        Returns what the figures of ``linear`` have to be multiplied by to be those of that part.
        """
        torch.set_num_threads(threads)
        model = msgspec.convert(config, ModelConfig)
        kind = DTYPES[dtype]
        wanted = max(1, round(model.num_layers / parts))
        affordable = _MOST_WEIGHTS // parts // (model.layer_parameters * kind.itemsize)
        count = max(1, min(wanted, affordable))
        self._layers = [
            [Linear(weights(rows, columns, kind)) for rows, columns in layer_matrices(model)]
            for _ in range(count)
        ]
        self._head = Linear(weights(model.vocab_size, model.hidden_size, kind))
        self._dtype = kind
        return {"scale": model.num_layers / parts / count}

    def linear(self, rows: int) -> dict[str, float]:
        """Seconds of all prepared layers, and of the head, on ``rows`` rows.

        What calling a layer from Python takes is left out: stages need not do so.
        """
        assert self._head is not None
        inputs = {
            size: torch.randn(rows, size).to(self._dtype)
            for size in {linear.in_features for layer in self._layers for linear in layer}
        }
        with torch.inference_mode():

            def layers() -> None:
                for layer in self._layers:
                    for linear in layer:
                        linear(inputs[linear.in_features])

            head, x_ti = self._head, torch.randn(rows, self._head.in_features).to(self._dtype)
            call = call_seconds(self._dtype)
            calls = sum(map(len, self._layers))
            return {
                "layers": _without(calls * call, best_seconds(layers)),
                "head": _without(call, best_seconds(lambda: head(x_ti))),
            }

    def close(self) -> None:
        pass


def layer_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of a layer's products, with q, k, v and gate, up merged as stages do."""
    return [
        (model.q_size + 2 * model.kv_size, model.hidden_size),
        (model.hidden_size, model.q_size),
        (2 * model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size),
    ]


def call_seconds(dtype: torch.dtype) -> float:
    """What a call of a linear layer takes beside its product: all of it, for a tiny one.

    Its product takes a fraction of a microsecond, which is not worth more effort.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what threads need to begin and end together is part of a product
    linear, x_ti = Linear(weights(32, 32, dtype)), torch.zeros(2, 32, dtype=dtype)
    seconds = best_seconds(lambda: linear(x_ti))
    torch.set_num_threads(threads)
    return seconds


def _without(calls: float, seconds: float) -> float:
    """A product's time, never less than half of what was measured."""
    return max(seconds - calls, seconds / 2)


def read_bandwidth(num_bytes: int) -> float:
    """Bytes/s that all threads read, by the best of a few ways to read."""
    data = torch.ones(max(num_bytes // 8, 1 << 20), dtype=torch.int64)
    floats = data.view(torch.float32).zero_()
    matrix = floats.view(torch.float32)[: len(floats) // 4096 * 4096].view(-1, 4096)
    vector = torch.zeros(4096)
    ways: Sequence[Callable[[], object]] = (
        data.sum, floats.sum, floats.max, lambda: torch.mv(matrix, vector),
    )  # fmt: skip
    best = max(data.nbytes / best_seconds(way) for way in ways)
    kernels = library.active()
    if kernels is not None:
        address, count, threads = data.data_ptr(), len(floats), torch.get_num_threads()
        best = max(best, data.nbytes / best_seconds(lambda: kernels.read(address, count, threads)))
    return best


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations/s (a multiplication and an addition are two) of the best square product."""
    rates = []
    for size in _PRODUCT_SIZES:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        ways: list[Callable[[], object]] = [lambda a=a, b=b: a @ b]  # type: ignore[misc]
        packed = Linear(b)
        ways.append(lambda a=a, packed=packed: packed(a))  # type: ignore[misc]
        with torch.inference_mode():
            rates += [2.0 * size**3 / best_seconds(way) for way in ways]
    return max(rates)


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of several repetitions, after one that does not count."""
    work()
    best, count, until = float("inf"), 0, time.perf_counter() + _SECONDS
    while count < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
        count += 1
    return best


def weights(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype).normal_(0.0, columns**-0.5)
