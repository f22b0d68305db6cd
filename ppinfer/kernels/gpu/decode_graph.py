"""Decode steps recorded as CUDA graphs: starting kernels one by one takes longer than running them.

A graph is recorded for a number of rows and of chunks, each rounded up; a smaller step is padded
with rows that write nothing. Recording waits for nothing that runs on the device, as a receive may
be posted there that only a later step brings to its end.

Legend: T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppinfer.kernels.gpu.attention import fits_at_once
from ppinfer.kernels.gpu.ops import GpuOps
from ppinfer.kernels.gpu.step import CHUNK, Packed, StepArrays, pack_decode

if TYPE_CHECKING:
    from ppinfer.kernels.batch import AttentionBatch
    from ppinfer.kernels.ops import Ops, Rotary

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class DecodeGraphs:
    """A stage's steps of one token a sequence, on one KV cache."""

    def __init__(self, rotary: Rotary) -> None:
        self._rotary = rotary
        self._graphs: dict[tuple[int, int], _DecodeGraph] = {}
        self._pool: Any = None  # memory that all graphs share, since they run one after another

    def run(
        self, x: Tensor, batch: AttentionBatch, forward: Callable[[Tensor, Ops], Tensor]
    ) -> Tensor | None:
        """The step's result, ``None`` where it is of another kind or too large.

        Args:
            x: token ids (T,) or hidden states ``(T, E)``.
            forward: the layers, always the same ones; it leaves what it is given as it is.
        """
        if batch.num_tokens > min(_ROWS[-1], len(batch.starts)):
            return None
        rows = next(rows for rows in _ROWS if rows >= batch.num_tokens)
        chunks = 1 << (-(-batch.num_positions // CHUNK) - 1).bit_length()
        shape = batch.shape
        if not fits_at_once(rows * shape.group_size, chunks, shape.num_kv_heads, shape.head_dim):
            return None
        packed = pack_decode(
            batch.starts, batch.tables, batch.block_size, shape.group_size, rows, chunks
        )
        graph = self._graphs.get((rows, chunks))
        if graph is None:
            tables = self._rotary.tables(chunks * CHUNK)
            graph = _DecodeGraph(forward, tables, x, rows, packed, self._pool)
            self._graphs[rows, chunks] = graph
            self._pool = graph.pool
        return graph.run(x, packed)


class _DecodeGraph:
    def __init__(
        self,
        forward: Callable[[Tensor, Ops], Tensor],
        rotary: tuple[Tensor, Tensor],
        x: Tensor,
        rows: int,
        packed: Packed,
        pool: Any,
    ) -> None:
        self._numbers = packed.send(x.device)
        self._x = x.new_zeros((rows, *x.shape[1:]))
        self._x[: len(x)] = x
        # Kept, since the graph reads what it refers to, such as tables that have grown meanwhile.
        self._ops = ops = GpuOps(StepArrays(packed, self._numbers), rotary)
        forward(self._x, ops)  # compiles what it needs
        self._graph = torch.cuda.CUDAGraph()
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._out = forward(self._x, ops)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.pool = self._graph.pool()

    def run(self, x: Tensor, packed: Packed) -> Tensor:
        self._numbers.copy_(torch.from_numpy(packed.numbers).pin_memory(), non_blocking=True)
        self._x[: len(x)] = x
        self._graph.replay()
        return self._out[: len(x)].clone()
