"""The run itself: level after level, every request in a task of its own. Needs aiohttp."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ppinfer.bench.serve.answer import ask
from ppinfer.bench.serve.arrivals import Load, arrivals
from ppinfer.bench.serve.figures import Level, figures
from ppinfer.bench.serve.meet import meet
from ppinfer.bench.serve.plan import Plan
from ppinfer.bench.serve.records import RequestRecord
from ppinfer.bench.serve.target import Target
from ppinfer.bench.serve.workload import Workload
from ppinfer.bench.throughput import Notice
from ppinfer.client.http import Client


@dataclass
class Served:
    """What has been found so far; ``interrupted`` if it was ended by Ctrl-C.

    ``limits`` are the objective's, in seconds by measure.
    """

    url: str
    model: str
    endpoint: str
    requests: str
    objective: str | None
    notes: list[str]
    levels: list[Level] = field(default_factory=list)
    interrupted: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


def measure_serve(plan: Plan, keep: Callable[[Served], None], notice: Notice) -> Served:
    """Run every level, and give ``keep`` what there is after each.

    Ctrl-C ends the run: what the level at work has so far is kept, too.

    Raises:
        ServerError: the server cannot be measured.
        KeyboardInterrupt: there is nothing yet to be kept.
    """
    return asyncio.run(_measure(plan, keep, notice))


async def _measure(plan: Plan, keep: Callable[[Served], None], notice: Notice) -> Served:
    async with Client(plan.target.url, plan.api_key, plan.timeout) as client:
        notice("getting to know the server", 0, 1)
        target, gauge, notes = await meet(client, plan.target)
        objective = None if plan.objective is None else str(plan.objective)
        found = Served(target.url, target.model, target.endpoint, plan.in_words(), objective, notes)
        if plan.objective is not None:
            found.limits = plan.objective.limits
        numbers = itertools.count()
        workload = plan.workload(gauge)
        for load in plan.loads:
            level = _LevelRun(client, target, workload, plan, load, numbers, notice)
            await level.run()
            found.levels.append(level.figures())
            found.interrupted = level.interrupted
            keep(found)
            if level.interrupted:
                break
        return found


@dataclass(frozen=True)
class _Prepared:
    """A request that is ready to be sent; a template of its record."""

    body: bytes
    wanted_input: int | None
    wanted_output: int

    def record(self, intended: float) -> RequestRecord:
        return RequestRecord(
            intended,
            input_tokens=self.wanted_input or 0,
            wanted_input=self.wanted_input,
            wanted_output=self.wanted_output,
        )


class _LevelRun:
    """One level of load, from the first request to the end of the last answer."""

    def __init__(
        self,
        client: Client,
        target: Target,
        workload: Workload,
        plan: Plan,
        load: Load,
        numbers: Iterator[int],
        notice: Notice,
    ) -> None:
        self.interrupted = False
        self._client, self._target, self._workload = client, target, workload
        self._plan, self._load, self._notice = plan, load, notice
        self._numbers = numbers
        self._records: list[RequestRecord] = []
        self._ended = 0
        self._free = asyncio.Semaphore(client.max_in_flight)
        self._start = self._seconds = self._cpu_seconds = 0.0

    async def run(self) -> None:
        prepared: Iterator[_Prepared] = map(self._prepare, itertools.count())
        if self._plan.extent.requests is not None:  # made now, they take no time later
            prepared = iter(list(itertools.islice(prepared, self._plan.extent.requests)))
        cpu, self._start = time.process_time(), time.perf_counter()
        try:
            if self._load.rate is not None:
                await self._at_rate(self._load.rate, prepared)
            else:
                await self._at_once(self._load.concurrency or 1, prepared)
        except asyncio.CancelledError:
            self.interrupted = True
        self._seconds, self._cpu_seconds = self._now(), time.process_time() - cpu

    def figures(self) -> Level:
        return figures(
            self._load, self._records, self._seconds, self._cpu_seconds, self._plan.objective
        )

    async def _at_rate(self, rate: float, prepared: Iterator[_Prepared]) -> None:
        times = arrivals(rate, self._plan.extent, self._plan.seed)
        async with asyncio.TaskGroup() as tasks:
            for intended, request in zip(times, prepared, strict=False):
                await asyncio.sleep(intended - self._now())
                tasks.create_task(self._ask(request, intended))

    async def _at_once(self, concurrency: int, prepared: Iterator[_Prepared]) -> None:
        """Each of ``concurrency`` users asks again as soon as the last answer is complete."""
        end = self._plan.extent.seconds

        async def user() -> None:
            for request in prepared:
                intended = self._now()
                if end is not None and intended >= end:
                    return
                await self._ask(request, intended)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(user())

    async def _ask(self, request: _Prepared, intended: float) -> None:
        record = request.record(intended)
        self._records.append(record)
        async with self._free:
            await ask(self._client, self._target, request.body, record, self._start)
        self._ended += 1
        extent = self._plan.extent
        if extent.requests is not None:
            self._notice(self._load.name, self._ended, extent.requests)
        elif extent.seconds is not None:
            self._notice(self._load.name, min(self._now(), extent.seconds), extent.seconds)

    def _prepare(self, index: int) -> _Prepared:
        ask = self._workload.ask(index, next(self._numbers))
        return _Prepared(self._target.body(ask), ask.prompt_tokens, ask.max_tokens)

    def _now(self) -> float:
        return time.perf_counter() - self._start
