"""Reads the tensors of one stage, each straight into the memory it will stay in.

Files are read, never mapped: mapped pages would count as resident and could vanish under us. What
has to be converted passes through a buffer of a few MB, so reading needs hardly any memory itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ppinfer.errors import CheckpointError
from ppinfer.messages import StageTensors, TensorEntry
from ppinfer.models.config import ModelConfig
from ppinfer.weights import dummy, quants

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE_ELEMENTS = 1 << 17
_MEMFD = "memfd:"


class TensorReader:
    """Access by canonical name to the tensors that the driver found for this stage.

    A file named ``memfd:N`` is the descriptor N of this process, which stays open.

    Raises:
        CheckpointError: a file cannot be opened.
    """

    def __init__(self, tensors: StageTensors, config: ModelConfig) -> None:
        self._files = tensors.files
        self._entries = {entry.name: entry for entry in tensors.entries}
        self._is_dummy = tensors.dummy
        self._tied = config.tie_word_embeddings
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file, fd in self._descriptors.items():
            if not self._files[file].startswith(_MEMFD):
                os.close(fd)
        self._descriptors.clear()

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill ``out`` (contiguous, of the tensor's shape) with tensor ``name``, converted.

        Raises:
            CheckpointError: the tensor is not there, its shape differs, or its file ends early.
        """
        if self._is_dummy:
            dummy.fill("embed.weight" if self._tied and name == "head.weight" else name, out)
            return
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"This stage was given no tensor {name}.")
        if entry.shape != tuple(out.shape):
            raise CheckpointError(f"{name} is {entry.shape}, but {tuple(out.shape)} is needed.")
        assert out.is_contiguous()
        in_place = _TORCH_DTYPES.get(entry.dtype) == out.dtype and out.device.type == "cpu"
        if in_place and not entry.rope_heads:
            self._fill(entry, 0, out)
            return
        for first, rows in self._pieces(entry):
            last = first + len(rows)
            if entry.rope_heads:
                target = _rows_in_halves(first, last, entry.shape[0] // entry.rope_heads)
                out.index_copy_(0, target.to(out.device), rows.to(out))
            else:
                out[first:last].copy_(rows)

    def _pieces(self, entry: TensorEntry) -> Iterator[tuple[int, Tensor]]:
        """The tensor a few MB at a time: first row, and the rows as some float type."""
        rows = entry.shape[0]
        columns = entry.shape[1] if len(entry.shape) > 1 else 1
        if columns == 1 and entry.dtype not in _TORCH_DTYPES:
            step = rows  # a quantised vector is one row of its format
        else:
            step = min(rows, max(1, _PIECE_ELEMENTS // columns))
        if entry.dtype in _TORCH_DTYPES:
            buffer = torch.empty((step, *entry.shape[1:]), dtype=_TORCH_DTYPES[entry.dtype])
        else:
            buffer = torch.empty((step, entry.num_bytes // rows), dtype=torch.uint8)
        row_bytes = entry.num_bytes // rows
        for first in range(0, rows, step):
            part = buffer[: min(step, rows - first)]
            self._fill(entry, first * row_bytes, part)
            if entry.dtype in _TORCH_DTYPES:
                yield first, part
            else:
                values = quants.dequantize(part.numpy(), entry.dtype)
                yield first, torch.from_numpy(values).view(-1, *entry.shape[1:])

    def _fill(self, entry: TensorEntry, offset: int, out: Tensor) -> None:
        """Fill contiguous ``out`` with the file's bytes from ``offset`` into the tensor on."""
        fd = self._open(entry.file)
        data: Any = out.view(-1).view(torch.uint8).numpy()
        view = memoryview(data)
        position = entry.offset + offset
        while view:
            try:
                count = os.preadv(fd, [view], position)
            except OSError as error:
                raise CheckpointError(f"{self._label(entry)} cannot be read: {error}") from error
            if count == 0:
                raise CheckpointError(f"{self._label(entry)} ends inside tensor {entry.name}.")
            view = view[count:]
            position += count

    def _open(self, file: int) -> int:
        if file not in self._descriptors:
            name = self._files[file]
            if name.startswith(_MEMFD):
                self._descriptors[file] = int(name.removeprefix(_MEMFD))
            else:
                try:
                    self._descriptors[file] = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"{name} cannot be opened: {error.strerror}.") from error
        return self._descriptors[file]

    def _label(self, entry: TensorEntry) -> str:
        return self._files[entry.file]


def _rows_in_halves(first: int, last: int, head_dim: int) -> Tensor:
    """Where GGUF's rows ``first`` to ``last`` of q or k belong.

    llama.cpp's converter interleaves the two halves of each head (rows 0, D/2, 1, D/2 + 1, …), as
    its rotary kernel turns neighbouring pairs where the original turns halves.
    """
    row = torch.arange(first, last)
    head, inside = row // head_dim, row % head_dim
    return head * head_dim + inside % 2 * (head_dim // 2) + inside // 2
