"""The lines of a batch: what one asks for, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Raw

from ppinfer.errors import BatchError
from ppinfer.server.decoding import decode_struct
from ppinfer.server.errors import ApiError, invalid

LONGEST_BODY = 16 * 2**20
_LONGEST_LINE = LONGEST_BODY + 2**16
_BOM = b"\xef\xbb\xbf"
_READ_BYTES = 2**20

URLS = ("/v1/chat/completions", "/v1/completions")


class Asked(NamedTuple):
    """A request that can be sent; ``body`` is JSON."""

    custom_id: str
    url: str
    body: bytes


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: Raw


class Problem(msgspec.Struct):
    """Why a line could not even be asked."""

    code: str
    message: str


class Outcome(msgspec.Struct):
    """A line of the output: ``response`` or ``error`` is there, the other one null."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Problem | None


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: Raw


class _Body(msgspec.Struct):
    stream: bool | None = None


class _Named(msgspec.Struct):
    custom_id: str | None = None


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The requests of a file, numbered from 1; ``None`` stands for a line that is too long.

    Blank lines are passed over. No more than one line is held.

    Raises:
        BatchError: the file cannot be read.
    """
    number = 0
    begin = _BOM
    try:
        with path.open("rb", buffering=_READ_BYTES) as file:
            while line := file.readline(_LONGEST_LINE):
                is_whole = line.endswith(b"\n") or len(line) < _LONGEST_LINE
                rest = b"" if is_whole else line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(_READ_BYTES)
                line, begin = line.removeprefix(begin).strip(), b""
                if line:
                    number += 1
                    yield number, line if is_whole else None
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {error.strerror}.") from error


def parse(line: bytes | None) -> Asked:
    """Raises ``ApiError`` where a line is no request that a batch may hold."""
    if line is None:
        raise invalid(None, f"The line is longer than {_LONGEST_LINE:,} bytes.", "line_too_long")
    try:
        found = decode_struct(line, _Line)
    except ApiError as error:
        error.message = error.message.replace("The body ", "The line ", 1)
        raise
    if found.method != "POST":
        raise invalid("method", "method must be POST.")
    if found.url not in URLS:
        raise invalid("url", f"url must be one of {', '.join(URLS)}.")
    body = bytes(found.body)
    if decode_struct(body, _Body).stream:
        raise invalid("stream", "stream must not be true in a batch.", "unsupported_parameter")
    return Asked(found.custom_id, found.url, body)


def custom_id_of(line: bytes | None) -> str | None:
    """As far as a line has one, whatever else is wrong with it."""
    if line is None:
        return None
    try:
        return msgspec.json.decode(line, type=_Named).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def one_line(body: bytes) -> Raw:
    """An answer as JSON without line breaks; what is no JSON becomes a text."""
    try:
        msgspec.json.decode(body)
        return Raw(msgspec.json.format(body, indent=-1))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Raw(msgspec.json.encode(body.decode(errors="replace")))
