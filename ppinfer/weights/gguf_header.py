"""The header of a GGUF file: metadata and the directory of its tensors (no torch).

Written from the format's specification (ggml/docs/gguf.md) and not with ``gguf.GGUFReader``, which
builds two arrays for each of the hundred thousand strings of a vocabulary and takes seconds. Types
and their sizes come from the ``gguf`` package. Nothing in a file is trusted: every length is held
against what is left of the file before anything of that length is made.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

import gguf

from ppinfer.errors import CheckpointError
from ppinfer.messages import TensorEntry

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_WINDOW = 4 << 20
_MOST_HEADER_BYTES = 512 << 20
_MOST_DIMS = 4

# Value types of the specification, in its order; None are strings and arrays.
_SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFHeader:
    """``tensors`` are by GGUF name, with row-major shapes; both in the file's order."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]


def read_header(path: str) -> GGUFHeader:
    """Parse and check the header.

    Raises:
        CheckpointError: the file is missing, cut short, or its header is not what it should be.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _Parser(path, file.fileno()).parse()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, struct.error) as error:
        raise CheckpointError(f"{path} has a damaged GGUF header: {error}.") from error


class _Parser:
    """A position in the file and a window of bytes around it."""

    def __init__(self, path: str, fd: int) -> None:
        self._path, self._fd = path, fd
        self._size = os.fstat(fd).st_size
        self._window, self._start = b"", 0  # bytes, and where in the file they begin
        self._at = 0  # position within the window

    def parse(self) -> GGUFHeader:
        if self._size < 24 or self._take(4) != _MAGIC:
            raise CheckpointError(f"{self._path} is no GGUF file.")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self._path} is GGUF version {version}; supported are 2 and 3, little-endian."
            )
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        # The least that a key and a tensor take: name length, type and one byte; and so on.
        if num_keys * 13 + num_tensors * 32 > self._size:
            raise self._damaged(f"it announces {num_keys:,} keys and {num_tensors:,} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"key {key[:100]!r} is there twice")
            metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(num_tensors)]
        return GGUFHeader(metadata, self._directory(infos, metadata))

    # ---------------------------------------------------------------- values

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(self._format(kind))

    def _format(self, kind: int) -> str:
        code = _SCALARS[kind] if kind < len(_SCALARS) else None
        if code is None:
            raise self._damaged(f"a value has the unknown type {kind}")
        return code

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _ARRAY:
            raise self._damaged("an array holds arrays, which no known key does")
        if kind == _STRING:
            return self._strings(count)
        code = self._format(kind)
        data = self._take(count * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{count}{code}", data))

    def _strings(self, count: int) -> list[str]:
        if count * 8 > self._left():
            raise self._damaged(f"an array of {count:,} strings does not fit the file")
        strings: list[str] = []
        length_of = struct.Struct("<Q").unpack_from
        while len(strings) < count:
            self._need(8)
            window, at, end = self._window, self._at, len(self._window)
            # Straight through what is in the window; the string at its edge is taken with care.
            for _ in range(count - len(strings)):
                if at + 8 > end:
                    break
                after = at + 8 + length_of(window, at)[0]
                if after > end:
                    break
                strings.append(str(window[at + 8 : after], "utf-8"))
                at = after
            self._at = at
            if len(strings) < count:
                strings.append(self._string())
        return strings

    def _string(self) -> str:
        return str(self._take(self._scalar("Q")), "utf-8")

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, self._take(size))[0]

    # ---------------------------------------------------------------- bytes

    def _left(self) -> int:
        return self._size - self._start - self._at

    def _take(self, count: int) -> bytes:
        self._need(count)
        data = self._window[self._at : self._at + count]
        self._at += count
        return data

    def _need(self, count: int) -> None:
        """Make sure that the window holds the next ``count`` bytes."""
        if self._at + count <= len(self._window):
            return
        position = self._start + self._at
        if count > self._left():
            raise self._damaged(f"{count:,} bytes are due at byte {position:,} of {self._size:,}")
        if position + count > _MOST_HEADER_BYTES:
            raise self._damaged(f"its header is longer than {_MOST_HEADER_BYTES:,} bytes")
        self._window = os.pread(self._fd, max(count, _WINDOW), position)
        self._start, self._at = position, 0
        if len(self._window) < count:
            raise self._damaged("it became shorter while it was read")

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self._path} has a damaged GGUF header: {why}.")

    # ---------------------------------------------------------------- tensors

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, row-major shape, type and offset."""
        name = self._string()
        dims = self._scalar("I")
        if not 1 <= dims <= _MOST_DIMS:
            raise self._damaged(f"tensor {name[:100]!r} has {dims} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dims))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _directory(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, TensorEntry]:
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment!r}")
        base = -(-(self._start + self._at) // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise self._damaged(f"tensor {name[:100]!r} is there twice")
            try:
                dtype = gguf.GGMLQuantizationType(kind)
            except ValueError:
                raise self._damaged(f"tensor {name[:100]!r} has the unknown type {kind}") from None
            block, block_bytes = gguf.GGML_QUANT_SIZES[dtype]
            count = 1
            for length in shape:
                count *= length
            if shape[-1] % block or count == 0:
                raise self._damaged(
                    f"tensor {name[:100]!r} of shape {shape} cannot be {dtype.name}"
                )
            num_bytes = count // block * block_bytes
            if offset % alignment or base + offset + num_bytes > self._size:
                raise self._damaged(
                    f"tensor {name[:100]!r} lies at bytes {base + offset:,} to "
                    f"{base + offset + num_bytes:,} of {self._size:,}"
                )
            tensors[name] = TensorEntry(
                name=name,
                file=0,
                offset=base + offset,
                num_bytes=num_bytes,
                dtype=dtype.name,
                shape=shape,
            )
        return tensors
