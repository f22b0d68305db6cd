"""The consumer's side of requests under way."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType

from ppinfer.engine.driver import Driver
from ppinfer.engine.live import Item, LiveRequest
from ppinfer.errors import PPInferError
from ppinfer.request import RequestDelta

_CHECK_SECONDS = 0.5
"""How often a waiting consumer makes sure that the driver is still there."""


class Stream(Iterator[RequestDelta]):
    """Deltas of some requests in the order in which they come.

    The pipeline runs ahead of a slow reader. Closing the stream, or dropping it, aborts what is
    unfinished. ``owner`` (the engine) is kept alive as long as the stream.
    """

    def __init__(
        self,
        driver: Driver | None,
        sink: queue.SimpleQueue[list[Item]],
        requests: Sequence[LiveRequest],
        owner: object = None,
    ) -> None:
        self._driver = driver
        self._owner = owner
        self._sink = sink
        self._arrived: deque[Item] = deque()
        self._unfinished = {live.index: live.request.seq_id for live in requests}
        if driver is not None:
            driver.check()
            driver.submit(requests)

    @classmethod
    def empty(cls) -> Stream:
        """A stream that has ended."""
        return cls(None, queue.SimpleQueue(), [])

    def __next__(self) -> RequestDelta:
        """Raises what ended the requests, where they did not end by themselves."""
        item = self._wait()
        if item is None:
            raise StopIteration
        if isinstance(item, PPInferError):
            self.close()
            raise item
        if item.finish_reason is not None:
            self._unfinished.pop(item.index, None)
        return item

    def close(self) -> None:
        if self._unfinished and self._driver is not None:
            self._driver.abort(self._unfinished.values())
            self._unfinished = {}

    def _wait(self) -> Item | None:
        """The next item; ``None`` at the end, also if another thread closes the stream."""
        while self._unfinished and self._driver is not None:
            if self._arrived:
                return self._arrived.popleft()
            try:
                self._arrived.extend(self._sink.get(timeout=_CHECK_SECONDS))
            except queue.Empty:
                self._driver.check()
        return None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
