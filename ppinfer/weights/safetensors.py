"""The directory of a safetensors file, read and checked without touching its tensors.

Format: 8 bytes of little-endian header length, the header as JSON, then the tensors' bytes. Each
header entry is ``{"dtype": …, "shape": […], "data_offsets": [begin, end]}``, relative to the end of
the header; tensors neither overlap nor leave gaps. Nothing in a file is trusted here.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ppinfer.errors import CheckpointError
from ppinfer.messages import TensorEntry

_MOST_HEADER_BYTES = 100_000_000  # as in the reference implementation
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_SIZES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}


def read_directory(path: str, file: int = 0) -> dict[str, TensorEntry]:
    """Every tensor of one file by name; ``file`` is the number its entries carry.

    Raises:
        CheckpointError: the file is missing, cut short, or its header is not what it should be.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        return read_open_directory(fd, path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    finally:
        os.close(fd)


def read_open_directory(fd: int, path: str, file: int = 0) -> dict[str, TensorEntry]:
    """The same of an open descriptor, for which ``path`` is only a name."""
    size = os.fstat(fd).st_size
    prefix = os.pread(fd, 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8 or length > _MOST_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: it has {size:,} bytes and says that its "
            f"header alone takes {length:,}."
        )
    return _parse(path, file, os.pread(fd, length, 8), 8 + length, size)


def _parse(path: str, file: int, header: bytes, base: int, size: int) -> dict[str, TensorEntry]:
    try:
        table = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} has a damaged header: it is no table.")
    table.pop("__metadata__", None)
    entries = {name: _entry(path, file, name, item, base) for name, item in table.items()}
    end, before = base, ""
    for entry in sorted(entries.values(), key=lambda e: (e.offset, e.num_bytes)):
        if entry.offset < end:
            raise CheckpointError(f"{path} has overlapping tensors {before} and {entry.name}.")
        if entry.offset + entry.num_bytes > size:
            raise CheckpointError(
                f"{path} is cut short: tensor {entry.name} ends at byte "
                f"{entry.offset + entry.num_bytes:,}, the file at {size:,}."
            )
        end, before = entry.offset + entry.num_bytes, entry.name
    return entries


def _entry(path: str, file: int, name: str, item: Any, base: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
        numbers = [*shape, begin, end]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
            raise ValueError
        needed = _SIZES.get(dtype, 0)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} has a damaged header entry for tensor {name}.") from None
    if not needed:
        raise CheckpointError(f"{path} stores tensor {name} as {dtype!r}, which is not supported.")
    for length in shape:
        needed *= length
    if end - begin != needed:
        raise CheckpointError(
            f"{path} gives tensor {name} {end - begin:,} bytes, but {dtype} of shape {shape} "
            f"takes {needed:,}."
        )
    return TensorEntry(
        name=name,
        file=file,
        offset=base + begin,
        num_bytes=needed,
        dtype=dtype,
        shape=tuple(shape),
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name[:100]!r} is there twice")
        table[name] = value
    return table
