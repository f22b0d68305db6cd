"""Fills the parts of a stage from its tensors so that memory peaks at the stage's share.

A weight that is reordered exists twice for a moment. So the largest are loaded first, while the
rest of the share is still empty, and each is read, reordered and released before the next is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppinfer.kernels.heap import returning_freed_memory
from ppinfer.kernels.linear import Linear
from ppinfer.messages import StageTensors
from ppinfer.models.config import ModelConfig
from ppinfer.models.layers import Attention, DecoderLayer, GatedMLP, RMSNorm
from ppinfer.models.policy import layer_shapes
from ppinfer.weights.reader import TensorReader

_MERGED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(slots=True)
class StageParts:
    """What a stage computes with."""

    embedding: Tensor | None = None
    layers: list[DecoderLayer] = field(default_factory=list)
    norm: RMSNorm | None = None
    head: Linear | None = None

    @property
    def nbytes(self) -> int:
        """Bytes resident; one tensor that serves as embedding and head counts once."""
        parts = (self.embedding, self.norm, self.head, *self.layers)
        total = sum(part.nbytes for part in parts if part is not None)
        if (
            self.embedding is not None
            and self.head is not None
            and self.head.shares(self.embedding)
        ):
            total -= self.embedding.nbytes
        return total


def load_stage(
    config: ModelConfig,
    first_layer: int,
    last_layer: int,
    tensors: StageTensors,
    dtype: torch.dtype,
    device: torch.device,
) -> StageParts:
    """Read the stage of layers ``first_layer`` to ``last_layer`` (exclusive).

    Raises:
        CheckpointError: a file cannot be read or is shorter than its directory said.
    """
    with TensorReader(tensors, config) as reader, returning_freed_memory():
        loader = _Loader(config, reader, dtype, device)
        return loader.load(first_layer, last_layer)


class _Loader:
    def __init__(
        self, config: ModelConfig, reader: TensorReader, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config, self._reader, self._dtype, self._device = config, reader, dtype, device
        self._shapes = layer_shapes(config)
        self._linears: dict[str, Linear] = {}

    def load(self, first_layer: int, last_layer: int) -> StageParts:
        config = self._config
        outer = (config.vocab_size, config.hidden_size)
        parts = StageParts()
        # (elements, what to do), to be done in descending order of size
        jobs: list[tuple[int, Callable[[], None]]] = []

        def add_linear(key: str, names: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
            def job() -> None:
                self._linears[key] = self._linear(names, shapes)

            jobs.append((sum(rows * columns for rows, columns in shapes), job))

        both = first_layer == 0 and last_layer == config.num_layers
        tied = config.tie_word_embeddings and both
        if last_layer == config.num_layers and not tied:
            add_linear("head", ("head",), [outer])
        for layer in range(first_layer, last_layer):
            for merged, part_names in _MERGED.items():
                names = tuple(f"layers.{layer}.{part}" for part in part_names)
                shapes = [self._shapes[f"{part}.weight"] for part in part_names]
                add_linear(f"{layer}.{merged}", names, shapes)
        if first_layer == 0:

            def embed() -> None:
                parts.embedding = self._tensor("embed.weight", outer)
                if tied:
                    self._linears["head"] = Linear(parts.embedding)

            jobs.append((outer[0] * outer[1], embed))
        # The sort is stable: a head comes before an embedding of its size, which needs no copy.
        for _, do in sorted(jobs, key=lambda job: -job[0]):
            do()
        for layer in range(first_layer, last_layer):
            parts.layers.append(self._layer(layer))
        if last_layer == config.num_layers:
            parts.norm = self._norm("final_norm", config.hidden_size)
            parts.head = self._linears.pop("head")
        return parts

    def _layer(self, layer: int) -> DecoderLayer:
        config, linears, name = self._config, self._linears, f"layers.{layer}"
        norms = config.qk_norm
        attention = Attention(
            linears.pop(f"{layer}.qkv"),
            linears.pop(f"{layer}.o"),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.windows[layer],
            q_norm=self._norm(f"{name}.q_norm", config.head_dim) if norms else None,
            k_norm=self._norm(f"{name}.k_norm", config.head_dim) if norms else None,
        )
        mlp = GatedMLP(linears.pop(f"{layer}.gate_up"), linears.pop(f"{layer}.down"))
        return DecoderLayer(
            self._norm(f"{name}.attn_norm", config.hidden_size),
            attention,
            self._norm(f"{name}.mlp_norm", config.hidden_size),
            mlp,
        )

    def _norm(self, name: str, size: int) -> RMSNorm:
        return RMSNorm(self._tensor(f"{name}.weight", (size,)), self._config.rms_norm_eps)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._reader.read_into(name, out)
        return out

    def _linear(self, names: tuple[str, ...], shapes: list[tuple[int, ...]]) -> Linear:
        """One linear layer out of the matrices ``names``, their rows one after the other."""
        has_bias = f"{names[0].rpartition('.')[2]}.bias" in self._shapes
        rows, columns = [shape[0] for shape in shapes], shapes[0][1]
        weight = self._merged([f"{name}.weight" for name in names], rows, (columns,))
        bias = self._merged([f"{name}.bias" for name in names], rows, ()) if has_bias else None
        return Linear(weight, bias)

    def _merged(self, names: list[str], rows: list[int], inner: tuple[int, ...]) -> Tensor:
        out = torch.empty((sum(rows), *inner), dtype=self._dtype, device=self._device)
        for name, part in zip(names, torch.split(out, rows), strict=True):
            self._reader.read_into(name, part)
        return out
