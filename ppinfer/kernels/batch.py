"""One step's sequences as every kind of attention kernel takes them: plain data and its views.

A view is made when first asked for: the native kernels need a few integers a sequence, the PyTorch
way an index of everything.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import torch

from ppinfer.kernels.native.library import StepData

if TYPE_CHECKING:
    from ppinfer.kernels.gpu.step import StepArrays
    from ppinfer.kernels.paged_batch import PagedIndex

SPLIT = 128
"""Every block size divides this many positions."""

RUN = 16
"""Every block size is a multiple of this many."""


class AttentionShape(Protocol):
    """What of a model's config attention needs to know."""

    @property
    def num_kv_heads(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class AttentionBatch:
    """One step's tokens, sequence after sequence, and where their keys and values live.

    Attributes:
        num_tokens: of all sequences together.
        num_positions: one more than the greatest position of a token.
    """

    def __init__(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        shape: AttentionShape,
        device: torch.device,
    ) -> None:
        self.starts, self.lengths, self.tables = starts, lengths, block_tables
        self.block_size, self.shape = block_size, shape
        self.device = device
        self.num_tokens = sum(lengths)
        self.num_positions = max(map(int.__add__, starts, lengths))

    @classmethod
    def build(
        cls,
        starts: Sequence[int],
        lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        *,
        config: AttentionShape,
        device: torch.device,
    ) -> AttentionBatch:
        """From plain data: for each sequence its first position, its tokens and its blocks.

        Sequence i computes positions ``starts[i]`` to ``starts[i] + lengths[i] - 1``; everything
        before has been written to the blocks of its table by earlier steps. At least one sequence,
        at least one token each; ``block_size`` divides 128. The arguments must stay as they are
        until the step is done; a table may be longer than needed.
        """
        assert starts
        assert min(lengths) > 0
        assert SPLIT % block_size == 0
        assert block_size % RUN == 0
        for start, length, table in zip(starts, lengths, block_tables, strict=True):
            assert len(table) * block_size >= start + length, "a sequence has too few blocks"
        return cls(starts, lengths, block_tables, block_size, config, device)

    @cached_property
    def native(self) -> StepData:
        """For the native kernels."""
        count = len(self.starts)
        numbers = array("i", self.starts)
        numbers.extend(self.lengths)
        numbers.extend(accumulate(self.lengths[:-1], initial=0))
        numbers.extend(accumulate((len(table) for table in self.tables[:-1]), initial=0))
        for table in self.tables:
            numbers.extend(table)
        self._numbers = numbers  # what the pointers point to
        first = numbers.buffer_info()[0]
        starts, lengths, offsets, table_starts, tables = (
            first + i * count * numbers.itemsize for i in range(5)
        )
        return StepData(
            num_seqs=count,
            num_tokens=self.num_tokens,
            block_size=self.block_size,
            block_shift=self.block_size.bit_length() - 1,
            kv_heads=self.shape.num_kv_heads,
            group=self.shape.group_size,
            head_dim=self.shape.head_dim,
            starts=starts,
            lengths=lengths,
            offsets=offsets,
            tables=tables,
            table_starts=table_starts,
        )

    @cached_property
    def gpu(self) -> StepArrays:
        """For the kernels of a GPU."""
        from ppinfer.kernels.gpu.step import StepArrays, pack

        packed = pack(
            self.starts, self.lengths, self.tables, self.block_size, self.shape.group_size
        )
        return StepArrays(packed, packed.send(self.device))

    @cached_property
    def index(self) -> PagedIndex:
        """For attention in plain PyTorch."""
        from ppinfer.kernels.paged_batch import PagedIndex

        return PagedIndex(
            self.starts, self.lengths, self.tables, self.block_size, self.shape, self.device
        )
