"""Masks of requests with a grammar, made beside the driver's thread while it waits for them.

After each token the matcher of llguidance takes it in, and a thread of a pool computes from which
tokens the next one is drawn; the library does that without Python's lock. It takes some 10 us, and
once in a while, with a grammar that is made for it, a hundred milliseconds: so the driver waits a
moment before it plans, and then goes on with the other sequences.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from ppinfer.errors import RequestError
from ppinfer.request import Request

_THREADS = 2
_MAX_REASON = 200
_STATE = re.compile("<(?:non-verbose/|state)>")


class Matcher(Protocol):
    """``llguidance.LLMatcher``, as far as it is used here."""

    def deep_copy(self) -> Matcher: ...
    def consume_token(self, token: int, /) -> bool: ...
    def compute_bitmask(self) -> bytes: ...
    def is_accepting(self) -> bool: ...
    def is_stopped(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...


class Masks:
    """Runs what makes masks. All but ``fail`` is for the driver's thread.

    ``patience_seconds`` is how long all masks of a step may hold up the plan of the next one.
    """

    def __init__(self, patience_seconds: float = 0.002) -> None:
        self._patience_seconds = patience_seconds
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ppinfer-mask")
        self._begun: list[Future[None]] = []
        self._failed: queue.SimpleQueue[tuple[int, RequestError]] = queue.SimpleQueue()

    def begin(self, make: Callable[[], None]) -> None:
        self._begun.append(self._pool.submit(make))

    def fail(self, seq_id: int, error: RequestError) -> None:
        """There will be no mask for this sequence."""
        self._failed.put((seq_id, error))

    def settle(self, wake: Callable[[], None]) -> None:
        """Wait a moment for what was begun; where that is not enough, ``wake`` is called later."""
        if self._begun:
            begun, self._begun = self._begun, []
            for late in wait(begun, self._patience_seconds).not_done:
                late.add_done_callback(lambda _: wake())

    def failures(self) -> Iterator[tuple[int, RequestError]]:
        """Sequences that cannot go on, each once."""
        while not self._failed.empty():
            yield self._failed.get()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Beginning:
    """A compiled grammar, before the first token.

    Attributes:
        matcher: of all requests with this grammar, which take copies.
        mask: for the first token.
        may_end: whether an output may be empty.
        ends: the tokens by which the matcher knows the end of an output.
    """

    matcher: Matcher
    mask: bytes
    may_end: bool
    ends: frozenset[int]

    @classmethod
    def of(cls, matcher: Matcher, ends: frozenset[int]) -> Beginning:
        """Raises ``RequestError`` where no token can come first."""
        return cls(matcher, _mask(matcher), matcher.is_accepting(), ends)


class MatcherConstraint:
    """A ``Constraint``: the output of one request, held against its grammar.

    It follows the tokens that were committed, so a sequence that is computed again goes on with it.
    Until the first of them it takes no memory to speak of. A mask has ``size`` bytes.
    """

    def __init__(self, beginning: Beginning, request: Request, size: int, masks: Masks) -> None:
        self._matcher = beginning.matcher
        self._seq_id = request.seq_id
        self._min_tokens = request.params.min_tokens
        self._stops = request.stop_ids
        self._not_stops = beginning.ends - request.stop_ids
        self._other_stops = request.stop_ids - beginning.ends
        self._size = size
        self._masks = masks
        self._num_tokens = 0
        self.mask: bytes | None = self._with_stops(beginning.mask, beginning.may_end)

    def accept(self, token: int) -> bool:
        if not self._num_tokens:
            self._matcher = self._matcher.deep_copy()
        self.mask = None
        self._num_tokens += 1
        if self._matcher.consume_token(token) and self._matcher.is_stopped():
            return True
        self._masks.begin(self._make)
        return False

    def _make(self) -> None:
        try:
            self.mask = self._with_stops(_mask(self._matcher), self._matcher.is_accepting())
        except RequestError as error:
            self._masks.fail(self._seq_id, error)
        except BaseException as error:  # a panic of the library is no Exception
            self._masks.fail(self._seq_id, grammar_error(f"{type(error).__name__}: {error}"))

    def _with_stops(self, given: bytes, may_end: bool) -> bytes:
        """Where the output may end, with every stop token of the request and none of the others;
        but rather with the wrong end than with none."""
        given = given[: self._size]
        is_early = self._num_tokens < self._min_tokens
        if not (is_early or self._not_stops or self._other_stops):
            return given
        mask = bytearray(given)
        if may_end:
            for token in self._other_stops:
                mask[token >> 3] |= 1 << (token & 7)
        for token in self._not_stops | (self._stops if is_early else frozenset()):
            mask[token >> 3] &= ~(1 << (token & 7))
        return bytes(mask) if _any_bit(mask) else given


def _mask(matcher: Matcher) -> bytes:
    """A bit a token. Raises ``RequestError`` where there is none."""
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise grammar_error(matcher.get_error())
    if not _any_bit(mask):
        raise grammar_error("no token of this model fits it here")
    return mask


def _any_bit(mask: bytes | bytearray) -> bool:
    return mask.count(0) != len(mask)


def grammar_error(why: str) -> RequestError:
    """``why`` may be a message of llguidance, of several lines and with its state behind it."""
    text = " ".join(_STATE.split(why)[0].split())[:_MAX_REASON].rstrip(".")
    if not text or text.startswith("NoExtension"):
        text = "nothing fits it"
    return RequestError(f"The grammar cannot be followed: {text}.", "grammar")
