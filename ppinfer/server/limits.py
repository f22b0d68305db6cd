"""How much is taken in at once. A place is taken before any work is done for a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppinfer.server.errors import ApiError, invalid

RETRY_SECONDS = 1


class Places:
    """Counts sequences that are at work or wait in the engine."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextmanager
    def take(self, count: int, param: str) -> Iterator[None]:
        """Places for ``count`` sequences, given back at the end.

        Raises:
            ApiError: 429 where that many are not free now, 400 where they never are.
        """
        if count > self.limit:
            raise invalid(
                param,
                f"The request asks for {count} sequences, and this server takes {self.limit} at "
                "once.",
            )
        if self.taken + count > self.limit:
            raise ApiError(
                429,
                "The server has as many requests as it takes; try again later.",
                code="queue_full",
                headers=[(b"retry-after", str(RETRY_SECONDS).encode())],
            )
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count
