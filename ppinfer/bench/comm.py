"""Which transport costs the stages least: every one, over 2, 3, 4 stages and sizes. No torch.

Every stage computes for the same while for each message, as stages do. The **efficiency** is the
share of the cores' time that went into that compute, of as many cores as there are stages or, where
there are fewer, of all: a transport that takes no time and no core would reach 100%.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ppinfer.bench.procfs import cores
from ppinfer.bench.remote import Worker, WorkerFailed
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table, number
from ppinfer.bench.throughput import Notice
from ppinfer.comm.ring_end import ring_of
from ppinfer.config import COMMS

TRANSPORTS = tuple(name for name in COMMS if name != "auto")
_TIMEOUT = 60.0
_RUN_SECONDS = 1.5
"""How long one measurement takes where the transport costs nothing."""


@dataclass
class HopCell:
    """One transport at one number of stages and one size; each list has an entry a turn.

    Attributes:
        rates: messages/s that passed the whole pipeline.
        delays: median seconds of a hop (see ``hop.py``), the worst of the hops.
        tails: the same at the 99th percentile.
        sends: median seconds that handing a message over took.
    """

    comm: str
    stages: int
    num_bytes: int
    efficiency: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    tails: list[float] = field(default_factory=list)
    sends: list[float] = field(default_factory=list)
    why: str = ""


def measure_comm(
    stage_counts: Sequence[int],
    sizes: Sequence[int],
    compute_seconds: float,
    repeats: int,
    notice: Notice,
    transports: Sequence[str] = TRANSPORTS,
    seconds: float = _RUN_SECONDS,
) -> Iterator[list[HopCell]]:
    """Transports take turns at each size; yields all cells each time some are done."""
    cells: list[HopCell] = []
    with Worker("hop", threads=1) as worker:
        products = worker.ask("calibrate", _TIMEOUT, seconds=compute_seconds)
    for stages in stage_counts:
        fresh = {(comm, size): HopCell(comm, stages, size) for size in sizes for comm in transports}
        cells += fresh.values()
        with ExitStack() as stack:
            rings = {}
            for comm in transports:
                try:
                    rings[comm] = _Ring(comm, stages, max(sizes), stack)
                except WorkerFailed as failure:
                    for size in sizes:
                        fresh[comm, size].why = str(failure)
            for done, size in enumerate(sizes):
                for _ in range(repeats):
                    for comm, ring in rings.items():
                        notice(f"{stages} stages, {size:,} bytes: {comm}", done, len(sizes))
                        ring.measure(fresh[comm, size], products, compute_seconds, seconds)
                yield cells


class _Ring:
    """Stage processes joined by one transport."""

    def __init__(self, comm: str, stages: int, largest: int, stack: ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ppinfer-bench-"))
        ends = ring_of(stages)
        fds = [[*inbound.fds, *outbound.fds] for inbound, outbound in ends]
        try:
            self._workers = [
                stack.enter_context(Worker("hop", threads=1, pass_fds=own)) for own in fds
            ]
        finally:
            # Only the stages hold them now, so each sees the end of its neighbours.
            for end in (end for pair in ends for end in pair):
                end.close()
        for stage, worker in enumerate(self._workers):
            worker.send(
                "open", stage=stage, stages=stages, comm=comm, store=f"file:{folder}/store",
                timeout=_TIMEOUT, largest=largest, ring_fds=fds[stage],
            )  # fmt: skip
        for worker in self._workers:
            worker.receive(_TIMEOUT)

    def measure(self, cell: HopCell, products: int, compute_seconds: float, seconds: float) -> None:
        busy = min(cell.stages, cores())
        messages = max(8, round(seconds / compute_seconds * busy / cell.stages))
        if cell.why:
            return
        try:
            for worker in self._workers:
                worker.send("hop", num_bytes=cell.num_bytes, messages=messages, products=products)
            answers = [worker.receive(_TIMEOUT) for worker in self._workers]
        except WorkerFailed as failure:
            cell.why = str(failure)
            return
        took = answers[0]["seconds"]  # until the last message had come back
        cell.efficiency.append(sum(a["computed"] for a in answers) / (took * busy))
        cell.rates.append(messages / took)
        hops = answers[1:]  # stage 0 gets the short messages that close the ring
        cell.delays.append(max(a["delay_p50"] for a in hops))
        cell.tails.append(max(a["delay_p99"] for a in hops))
        cell.sends.append(max(a["send_p50"] for a in answers[:-1]))


def best(cells: Sequence[HopCell], stages: int) -> str | None:
    """The transport with the highest efficiency, in the geometric mean over the sizes."""
    means = {}
    for comm in dict.fromkeys(cell.comm for cell in cells):
        own = [c for c in cells if c.comm == comm and c.stages == stages]
        if own and all(cell.efficiency and not cell.why for cell in own):
            logs = [math.log(Spread.of(cell.efficiency).median) for cell in own]
            means[comm] = sum(logs) / len(logs)
    return max(means, key=means.__getitem__) if means else None


def verdict(cells: Sequence[HopCell]) -> str:
    """One line: the best transport at each number of stages."""
    parts = []
    for stages in dict.fromkeys(cell.stages for cell in cells):
        name = best(cells, stages)
        parts.append(f"{stages} stages: {name or 'none worked'}")
    return "Best by efficiency: " + ", ".join(parts) + "."


def table(cells: Sequence[HopCell], compute_seconds: float) -> Table:
    made = Table(
        f"Transports on one host, every stage computing {compute_seconds * 1e3:g} ms a message",
        ["stages", "message", "transport", "efficiency (range)", "messages/s", "delay of a hop µs",
         "p99 µs", "send µs"],
        labels=3,
    )  # fmt: skip
    last: tuple[int, int] | None = None
    for cell in cells:
        place = (cell.stages, cell.num_bytes)
        if last is not None and place != last:
            made.breaks.append(len(made.rows))
        labels = ["", ""] if place == last else [str(cell.stages), size_in_words(cell.num_bytes)]
        last = place
        if cell.why or not cell.efficiency:
            made.rows.append([*labels, cell.comm, "failed" if cell.why else "…", *[""] * 4])
            continue
        efficiency = Spread.of(cell.efficiency)
        figures = [
            number(Spread.of(values).median * 1e6)
            for values in (cell.delays, cell.tails, cell.sends)
        ]
        spread = f"{efficiency.median:.1%} ({efficiency.low:.1%}–{efficiency.high:.1%})"
        rate = number(Spread.of(cell.rates).median)
        made.rows.append([*labels, cell.comm, spread, rate, *figures])
    failed = {f"{cell.comm}, {cell.stages} stages": cell.why for cell in cells if cell.why}
    made.notes = [verdict(cells), *(f"{name}: {why}" for name, why in failed.items())]
    return made


def size_in_words(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"
