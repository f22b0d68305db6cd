"""Looks at the engine for all who watch together, and tells them; while nobody does, nothing runs.

``/live`` streams what is told here. Requests are listed for each viewer: those of its own key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from ppinfer.engine.state import EngineState, LiveState
from ppinfer.server.errors import ApiError
from ppinfer.server.in_flight import RequestView
from ppinfer.server.lanes import Box, Lanes
from ppinfer.server.rates import Rates, Sample, Shares

if TYPE_CHECKING:
    from ppinfer.server.service import Service

INTERVAL = 0.2
"""Seconds from one look to the next."""

MOST_VIEWERS = 32

_BEHIND = 3
"""Events that a viewer who reads slowly may be behind; older ones are dropped."""

_SAMPLES = 300
"""Seconds that the charts go back."""

_log = logging.getLogger("ppinfer.server")

Status: TypeAlias = Literal["loading", "serving", "silent", "draining", "ended"]
"""``silent``: the engine does not answer, and what is told of it is what was known."""


class StageView(msgspec.Struct):
    """``boxes`` are numbers in turn: kind, step, start, length (see ``lanes.Box``); microseconds,
    the start before ``now``."""

    first_layer: int
    last_layer: int
    heartbeat_age: float
    shares: Shares | None
    boxes: list[int]


class Engine(msgspec.Struct):
    """What is the same for all; ``now`` is the driver's clock in microseconds."""

    status: Status
    model: str
    now: int
    running: int
    waiting: int
    kv_blocks: int
    kv_blocks_used: int
    stages: list[StageView]
    steps: dict[int, str]


class Event(msgspec.Struct):
    """``samples`` are all there are at first, then those that are new; ``others`` is the number of
    requests that came with other keys."""

    engine: msgspec.Raw
    samples: list[Sample]
    requests: list[RequestView]
    others: int


class Viewer:
    """Events for one who watches, as far as they are read."""

    def __init__(self, salt: str, samples: list[Sample]) -> None:
        self.salt = salt
        self._samples = samples
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._is_over = False

    def tell(self, event: Event) -> None:
        """The samples of events that are dropped come with the next."""
        event.samples = self._samples + event.samples
        self._samples = []
        self._events.append(event)
        if len(self._events) > _BEHIND:
            late = self._events.popleft()
            self._events[0].samples = late.samples + self._events[0].samples
        self._arrived.set()

    def end(self) -> None:
        self._is_over = True
        self._arrived.set()

    async def events(self) -> AsyncIterator[bytes]:
        while True:
            await self._arrived.wait()
            while self._events:
                yield msgspec.json.encode(self._events.popleft())
            if self._is_over:
                return
            self._arrived.clear()


class Hub:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._viewers: set[Viewer] = set()
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def viewer(self, salt: str) -> Iterator[Viewer]:
        """Watch. Raises ``ApiError`` (429) where too many do."""
        if len(self._viewers) >= MOST_VIEWERS:
            raise ApiError(429, "Too many watch already.", code="too_many_viewers")
        viewer = Viewer(salt, list(self._samples))
        self._viewers.add(viewer)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        service = self._service
        lanes, rates = Lanes(), Rates()
        try:
            while True:
                began = time.monotonic()
                live = await service.observed.look(service.engine_or_none)
                self._tell(live, lanes, rates)
                if service.draining and not service.requests.generating:
                    break  # viewers do not hold up the end
                await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))
        except Exception:
            _log.exception("what is shown could not be put together")
        finally:
            if (engine := service.engine_or_none) is not None:
                engine.look_away()
        for viewer in self._viewers:
            viewer.end()
        self._looking = None

    def _tell(self, live: LiveState | None, lanes: Lanes, rates: Rates) -> None:
        state = self._service.observed.state
        sample = None
        boxes: list[list[Box]] = []
        if live is not None:
            boxes = lanes.boxes(live)
            sample = rates.take(time.time(), state)
        if sample is not None:
            self._samples.append(sample)
        engine = msgspec.Raw(msgspec.json.encode(self._engine(live, state, boxes, rates)))
        requests = self._service.requests
        for viewer in self._viewers:
            own = requests.views(viewer.salt, state.sequences)
            others = len(requests.generating) - len(own)
            viewer.tell(Event(engine, [sample] if sample else [], own, others))

    def _engine(
        self, live: LiveState | None, state: EngineState, boxes: list[list[Box]], rates: Rates
    ) -> Engine:
        now = 0 if live is None else live.now
        shares = rates.shares or [None] * len(state.stages)
        boxes = boxes or [[] for _ in state.stages]
        return Engine(
            status=self._status(),
            model=self._service.model_name,
            now=now // 1000,
            running=state.running,
            waiting=state.waiting,
            kv_blocks=state.kv_blocks,
            kv_blocks_used=state.kv_blocks_used,
            stages=[
                StageView(
                    first_layer=stage.first_layer,
                    last_layer=stage.last_layer,
                    heartbeat_age=round(stage.heartbeat_age, 2),
                    shares=share,
                    boxes=_flat(of_stage, now),
                )
                for stage, share, of_stage in zip(state.stages, shares, boxes, strict=True)
            ],
            steps={} if live is None else {step: made.words for step, made in live.steps.items()},
        )

    def _status(self) -> Status:
        service = self._service
        if service.draining:
            return "draining"
        if service.engine_or_none is None:
            return "loading"
        if not service.is_alive:
            return "ended"
        return "serving" if service.observed.is_fresh else "silent"


def _flat(boxes: list[Box], now: int) -> list[int]:
    return [
        number
        for kind, step, start, end in boxes
        for number in (kind, step, (now - start) // 1000, (end - start) // 1000)
    ]
