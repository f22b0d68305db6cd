"""The output of a batch: what is done, and a place for more.

A line is written whole and at once, so a process that is killed loses none; to disk it is forced
every second, so a machine that fails loses at most that second's, which are then computed again.
An ``id`` holds the request's number in the input: that is how a later run knows what is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from ppinfer.batch.lines import Outcome
from ppinfer.errors import BatchError

_PREFIX = "batch_req_"
_ID = re.compile(_PREFIX + r"([1-9][0-9]{0,17})")
_BEGIN = f'{{"id":"{_PREFIX}'.encode()
"""How every line begins."""
_SYNC_SECONDS = 1.0

_encode = msgspec.json.Encoder().encode


class Numbers:
    """Some numbers, kept as stretches: few, where all come nearly in order."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []  # one past each stretch
        self.count = 0

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._begins, number) - 1
        return at >= 0 and number < self._ends[at]

    @property
    def num_stretches(self) -> int:
        return len(self._begins)

    def add(self, number: int) -> None:
        assert number not in self
        at = bisect_right(self._begins, number)
        joins_before = at > 0 and self._ends[at - 1] == number
        joins_after = at < len(self._begins) and self._begins[at] == number + 1
        if joins_before and joins_after:
            self._ends[at - 1] = self._ends.pop(at)
            del self._begins[at]
        elif joins_before:
            self._ends[at - 1] = number + 1
        elif joins_after:
            self._begins[at] = number
        else:
            self._begins.insert(at, number)
            self._ends.insert(at, number + 1)
        self.count += 1


class _Written(msgspec.Struct):
    id: str
    custom_id: str | None


class Journal:
    """An output file that is open and locked, after what it already held was read.

    Attributes:
        done: numbers of the requests that it answers.
        digest: of the numbers and ``custom_id`` of these, in whatever order.

    Raises:
        BatchError: the file cannot be used, another run writes it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.done = Numbers()
        self.digest = 0
        self._path = path
        self._synced = time.monotonic()
        with self._explained("opened"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            with self._explained("read"):
                self._size = self._read()
                os.ftruncate(self._fd, self._size)  # of a line that was cut off nothing stays
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, number: int, outcome: Outcome) -> None:
        """Append what came of a request; its ``id`` is set here."""
        outcome.id = f"{_PREFIX}{number}"
        line = _encode(outcome) + b"\n"
        try:
            with self._explained("written"):
                left = memoryview(line)
                while left:
                    left = left[os.write(self._fd, left) :]
                if time.monotonic() - self._synced > _SYNC_SECONDS:
                    self._sync()
        except BatchError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)
        self.done.add(number)

    def close(self) -> None:
        """What was written is on disk then, and the file free for another run."""
        try:
            with self._explained("written"):
                self._sync()
        finally:
            os.close(self._fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BatchError(f"Another run is writing {self._path}; wait for its end.") from error

    def _read(self) -> int:
        """Take in what is there; returns how many bytes of it are whole lines."""
        size = 0
        with open(os.dup(self._fd), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    if not (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                        raise self._is_something_else()
                    break
                self._take(line)
                size += len(line)
        return size

    def _take(self, line: bytes) -> None:
        try:
            found = msgspec.json.decode(line, type=_Written)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._is_something_else() from None
        number = _ID.fullmatch(found.id)
        if number is None or int(number[1]) in self.done:
            raise self._is_something_else()
        self.done.add(int(number[1]))
        self.digest += digest(int(number[1]), found.custom_id)

    def _is_something_else(self) -> BatchError:
        return BatchError(
            f"{self._path} holds something else than this program's answers; name another file."
        )

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BatchError(f"{self._path} cannot be {what}: {error.strerror}.") from error


def digest(number: int, custom_id: str | None) -> int:
    """Of one request; those of several are added up. Good for one run of the program only."""
    # Of a string, not of a pair, whose hash is so simple that sums of two often coincide.
    return hash(f"{number} {custom_id!r}")
