"""What row-invariance costs: the linear layers against those that promise nothing of the kind.

A library that may choose another kernel for every number of rows could be faster than one whose
rows' bits must not change. Here they multiply the same matrices, all layers of a model in turn, so
that weights come from memory: ``Linear`` as stages use it, oneDNN with reordered weights and every
instruction set it knows, and ``F.linear``. The **price** is the time of the first over that of the
better of the others, less one; below zero nothing is paid. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from ppinfer.bench.named import Subject
from ppinfer.bench.procfs import cores
from ppinfer.bench.remote import Worker
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table, number
from ppinfer.bench.throughput import Notice

_TIMEOUT = 300.0
ANY_ISA = {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}
"""Lets oneDNN use what ``kernels/linear.py`` denies it."""


@dataclass
class Price:
    """Seconds of all layers' products at so many rows; each list has an entry a turn.

    ``free`` has a list for each way that promises nothing, by its name.
    """

    dtype: str
    threads: int
    rows: int
    own: list[float]
    free: dict[str, list[float]]

    @property
    def price(self) -> float:
        best = min(Spread.of(seconds).median for seconds in self.free.values())
        return Spread.of(self.own).median / best - 1


def measure_invariance(
    subject: Subject, dtypes: Sequence[str], rows: Sequence[int], repeats: int, notice: Notice
) -> Iterator[list[Price]]:
    """One core and all of them; yields all prices each time there is another."""
    found: list[Price] = []
    config = msgspec.to_builtins(subject.config)
    for dtype in dtypes:
        for threads in sorted({1, cores()}):
            with Worker("products", threads=threads, environment=ANY_ISA) as worker:
                worker.ask("prepare", _TIMEOUT, config=config, dtype=dtype, threads=threads)
                for done, count in enumerate(rows):
                    notice(f"{dtype}, {threads} threads: {count} rows", done, len(rows))
                    turns = [
                        worker.ask("measure", _TIMEOUT, rows=count)  # by name of the way
                        for _ in range(repeats)
                    ]
                    ways = {way: [turn[way] for turn in turns] for way in turns[0]}
                    found.append(Price(dtype, threads, count, ways.pop("own"), ways))
                    yield found


def table(found: Sequence[Price], name: str) -> Table:
    ways = list(dict.fromkeys(way for price in found for way in price.free))
    made = Table(
        f"{name}: what row-invariance costs, all layers' products in ms",
        ["dtype", "threads", "rows", "row-invariant", *ways, "price"],
        labels=3,
    )
    last: tuple[str, int] | None = None
    for price in found:
        place = (price.dtype, price.threads)
        if last is not None and place != last:
            made.breaks.append(len(made.rows))
        labels = ["", ""] if place == last else [price.dtype, str(price.threads)]
        last = place
        times = [price.own, *(price.free.get(way, []) for way in ways)]
        figures = [number(Spread.of(t).median * 1e3) if t else "" for t in times]
        made.rows.append([*labels, f"{price.rows:,}", *figures, f"{price.price:+.0%}"])
    dearest = max(found, key=lambda price: price.price)
    made.notes = [
        f"Highest price: {dearest.price:+.0%}, {dearest.dtype}, {dearest.rows:,} rows, "
        f"{dearest.threads} {'thread' if dearest.threads == 1 else 'threads'}."
    ]
    return made
