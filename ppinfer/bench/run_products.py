"""The worker of ``invariance.py``: a model's linear layers multiplied in several ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.bench.probe import DTYPES, best_seconds, layer_matrices, weights
from ppinfer.kernels.linear import Linear, can_pack
from ppinfer.models.config import ModelConfig

_MOST_BYTES = 1 << 30
"""Of one copy of the weights; of a larger model some layers stand for all."""

Product = Callable[[Tensor], object]


class ProductsRunner:
    def prepare(self, config: dict[str, Any], dtype: str, threads: int) -> dict[str, int]:
        """Make the weights up, a copy for each way; returns how many layers there are."""
        torch.set_num_threads(threads)
        model, self._dtype = msgspec.convert(config, ModelConfig), DTYPES[dtype]
        self._shapes = layer_matrices(model)
        affordable = _MOST_BYTES // (model.layer_parameters * self._dtype.itemsize)
        count = max(1, min(model.num_layers, affordable))
        self._scale = model.num_layers / count
        self._ways: dict[str, list[list[Product]]] = {"own": [], "F.linear": []}
        for _ in range(count):
            layer = [weights(*shape, self._dtype) for shape in self._shapes]
            self._ways["F.linear"].append([_plain(weight) for weight in layer])
            self._ways["own"].append([Linear(weight.clone()) for weight in layer])
            if can_pack(self._dtype, torch.device("cpu")):
                reordered = [_reordered(weight) for weight in layer]
                self._ways.setdefault("oneDNN", []).append(reordered)
        return {"layers": count}

    def measure(self, rows: int) -> dict[str, float]:
        """Seconds of all layers' products on ``rows`` rows, by the name of the way."""
        inputs = [torch.randn(rows, size).to(self._dtype) for _, size in self._shapes]

        def multiply(layers: list[list[Product]]) -> None:
            for layer in layers:
                for product, x_ti in zip(layer, inputs, strict=True):
                    product(x_ti)

        with torch.inference_mode():
            return {
                name: best_seconds(lambda layers=layers: multiply(layers)) * self._scale  # type: ignore[misc]
                for name, layers in self._ways.items()
            }

    def close(self) -> None:
        pass


def _plain(weight: Tensor) -> Product:
    return lambda x_ti: functional.linear(x_ti, weight)


def _reordered(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x_ti: torch.ops.mkldnn._linear_pointwise(x_ti, packed, None, "none", [], "")
