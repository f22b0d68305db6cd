"""One stage's share of a decoder: some layers, and embedding or head where they are its own.

Takes token ids or hidden states, gives hidden states or logits. It never communicates, and between
two stages nothing is rounded that a single process would not round: where a model is cut changes no
bit of its logits.

Legend: T tokens, R rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ppinfer.kernels.batch import AttentionBatch
from ppinfer.kernels.gpu import device as gpu
from ppinfer.kernels.linear import Linear
from ppinfer.kernels.native import library
from ppinfer.kernels.ops import Buffers, Ops, native_norm, ops_for_step
from ppinfer.kernels.stack import LayerStack, fits
from ppinfer.messages import StageTensors
from ppinfer.models.config import ModelConfig
from ppinfer.models.layers import DecoderLayer, RMSNorm
from ppinfer.models.loading import load_stage
from ppinfer.models.rope import RotaryTable

if TYPE_CHECKING:
    from ppinfer.kernels.gpu.decode_graph import DecodeGraphs


class StageModel:
    """Layers ``first_layer`` to ``last_layer`` (exclusive) of a model, on one device.

    Attributes:
        config: the whole model's numbers.
        num_layers: layers of this stage; ``forward`` takes as many KV cache pairs.
        weight_bytes: bytes resident for weights, 0 before ``load``. A tied matrix that this stage
            uses for embedding and head counts twice, since the head is stored in another layout.
    """

    def __init__(
        self,
        config: ModelConfig,
        first_layer: int,
        last_layer: int,
        *,
        is_first: bool,
        is_last: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert 0 <= first_layer < last_layer <= config.num_layers
        assert is_first == (first_layer == 0)
        assert is_last == (last_layer == config.num_layers)
        self.config = config
        self.first_layer, self.last_layer = first_layer, last_layer
        self.is_first, self.is_last = is_first, is_last
        self.dtype, self.device = dtype, device
        self.weight_bytes = 0
        self._rotary = RotaryTable(config.rope, config.head_dim, dtype, device)
        self._kernels = library.active_for(device, dtype, config.head_dim)
        self._buffers = None if self._kernels is None else Buffers(dtype)
        self._stack: tuple[Sequence[tuple[Tensor, Tensor]], LayerStack | None] | None = None
        self._graphs: tuple[Sequence[tuple[Tensor, Tensor]], DecodeGraphs] | None = None
        self._embedding: Tensor | None = None
        self._layers: list[DecoderLayer] = []
        self._norm: RMSNorm | None = None
        self._head: Linear | None = None

    @property
    def num_layers(self) -> int:
        return self.last_layer - self.first_layer

    def load(self, tensors: StageTensors) -> None:
        """Read this stage's weights, the largest first and one at a time.

        Raises:
            CheckpointError: a file cannot be read or is shorter than its directory said.
        """
        parts = load_stage(
            self.config, self.first_layer, self.last_layer, tensors, self.dtype, self.device
        )
        self._embedding, self._layers = parts.embedding, parts.layers
        self._norm, self._head = parts.norm, parts.head
        self.weight_bytes = parts.nbytes

    def forward(
        self, x: Tensor, batch: AttentionBatch, cache: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The residual stream ``(T, E)`` after this stage's layers; writes the batch's KV.

        Args:
            x: token ids (T,) on the first stage, else the stream ``(T, E)`` of the stage before,
                which is left as it is.
            cache: K and V pools of each of this stage's layers.
        """
        graphs = self._graphs_on(cache)
        if graphs is not None:
            replayed = graphs.run(x, batch, partial(self._layer_by_layer, cache=cache))
            if replayed is not None:
                return replayed
        stack = self._stack_on(cache)
        if stack is not None:
            return stack(self._stream(x), batch, self._rotary)
        ops = ops_for_step(batch, self._rotary, self._buffers, self.dtype)
        return self._layer_by_layer(x, ops, cache)

    def _stream(self, x: Tensor) -> Tensor:
        """What layers may add to in place."""
        return x.clone() if self._embedding is None else functional.embedding(x, self._embedding)

    def _layer_by_layer(
        self, x: Tensor, ops: Ops, cache: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        x = self._stream(x)
        pending: Tensor | None = None
        for layer, pools in zip(self._layers, cache, strict=True):
            pending = layer(x, pending, ops, pools)
        assert pending is not None
        return x.add_(pending)

    def _graphs_on(self, cache: Sequence[tuple[Tensor, Tensor]]) -> DecodeGraphs | None:
        """Recorded decode steps on this cache, on a GPU with kernels of our own."""
        if not gpu.usable(self.device):
            return None
        if self._graphs is None or self._graphs[0] is not cache:
            from ppinfer.kernels.gpu.decode_graph import DecodeGraphs

            self._graphs = cache, DecodeGraphs(self._rotary)
        return self._graphs[1]

    def _stack_on(self, cache: Sequence[tuple[Tensor, Tensor]]) -> LayerStack | None:
        """All layers as one native call on this cache, where that can be had."""
        if self._stack is None or self._stack[0] is not cache:
            stack = None
            parts = [layer.parts for layer in self._layers]
            if self._kernels is not None and self._buffers is not None and fits(parts):
                stack = LayerStack(self._kernels, parts, cache, self._buffers)
            self._stack = cache, stack
        return self._stack[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """``(R, E)`` of the last layer's stream to ``(R, V)``; last stage only.

        They are in the model's dtype, as in ``transformers``.
        """
        norm, head = self._norm, self._head
        assert norm is not None
        assert head is not None
        if gpu.usable(self.device):
            from ppinfer.kernels.gpu import rows

            return head(rows.norm(hidden.contiguous(), None, norm.weight, norm.eps))
        if self._kernels is None or self._buffers is None:
            return head(norm(hidden))
        x = hidden.contiguous()
        return head(native_norm(self._kernels, self._buffers, x, None, norm.weight, norm.eps))
