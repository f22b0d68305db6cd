"""What is to happen in modelled time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[float, int], None]
"""Called with its time and with what it was posted for."""


class Events:
    """Taken in the order of time, equal ones in the order in which they came up: so the same input
    gives the same result."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Action, int]] = []
        self._count = 0

    def post(self, at: float, action: Action, which: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, action, which))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            at, _, action, which = heapq.heappop(self._events)
            action(at, which)
