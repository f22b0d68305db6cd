"""The figures of a level, out of its requests."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ppinfer.bench.serve.arrivals import Load
from ppinfer.bench.serve.objective import Objective
from ppinfer.bench.serve.records import CUT_OFF, RequestRecord
from ppinfer.percentile import percentile


@dataclass(frozen=True)
class Percentiles:
    """Of some times, in seconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Percentiles | None:
        """``None`` where there are no values; those that are ``None`` do not count."""
        known = sorted(value for value in values if value is not None)
        if not known:
            return None
        p50, p90, p99 = (percentile(known, share) for share in (0.5, 0.9, 0.99))
        return cls(p50, p90, p99, sum(known) / len(known), known[-1])


@dataclass
class Level:
    """One level of load; rates are per second of ``seconds``.

    Attributes:
        name: such as ``4/s``; ``label`` is the figure alone.
        seconds: from the start to the end of the last answer.
        requests: how many arrived.
        done: requests that were answered in full.
        cut_off: requests that were not answered yet when the run was ended.
        failures: the other ones by status, and an example of why.
        input_tokens, output_tokens: of the requests that are done.
        wanted_input, wanted_output: what these were meant to have; input ``None`` if unknown.
        ttft: from intended arrival to first piece of text.
        itl: gaps between pieces of text, of all requests together.
        tpot: mean time of an output token after the first, by request.
        e2e: from intended arrival to the end of the answer.
        queue: from intended arrival to being sent.
        good: requests that met the objective, ``None`` where there is none.
        chunks: pieces of text that came.
        client_share: processor time of this program, as a share of one core.
        counted: requests whose tokens the server counted.
    """

    name: str
    label: str
    rate: float | None
    concurrency: int | None
    seconds: float
    requests: int
    done: int
    cut_off: int
    failures: dict[str, int]
    why: dict[str, str]
    input_tokens: int
    output_tokens: int
    wanted_input: int | None
    wanted_output: int
    ttft: Percentiles | None
    itl: Percentiles | None
    tpot: Percentiles | None
    e2e: Percentiles | None
    queue: Percentiles | None
    good: int | None
    chunks: int
    client_share: float
    counted: int

    requests_per_second: float = field(init=False)
    input_per_second: float = field(init=False)
    output_per_second: float = field(init=False)
    goodput: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.requests_per_second = self.done / self.seconds
        self.input_per_second = self.input_tokens / self.seconds
        self.output_per_second = self.output_tokens / self.seconds
        self.goodput = None if self.good is None else self.good / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


def figures(
    load: Load,
    records: Sequence[RequestRecord],
    seconds: float,
    cpu_seconds: float,
    objective: Objective | None,
) -> Level:
    """What ``records``, made in ``seconds``, come to."""
    done = [record for record in records if record.is_ok]
    failed = [r for r in records if not r.is_ok and r.status != CUT_OFF]
    inputs = [record.wanted_input for record in done if record.wanted_input is not None]
    met = [r for r in done if objective is not None and objective.is_met(r.measured())]
    seconds = max(seconds, 1e-9)
    return Level(
        name=load.name,
        label=load.label,
        rate=load.rate if load.name != "inf" else None,
        concurrency=load.concurrency,
        seconds=seconds,
        requests=len(records),
        done=len(done),
        cut_off=len(records) - len(done) - len(failed),
        failures=dict(Counter(record.status for record in failed)),
        why={record.status: record.why for record in reversed(failed) if record.why},
        input_tokens=sum(record.input_tokens for record in done),
        output_tokens=sum(record.output_tokens for record in done),
        wanted_input=sum(inputs) if len(inputs) == len(done) else None,
        wanted_output=sum(record.wanted_output for record in done),
        ttft=Percentiles.of(record.ttft for record in done),
        itl=Percentiles.of(itertools.chain.from_iterable(record.gaps for record in done)),
        tpot=Percentiles.of(record.tpot for record in done),
        e2e=Percentiles.of(record.e2e for record in done),
        queue=Percentiles.of(record.queue for record in records),
        good=None if objective is None else len(met),
        chunks=sum(len(record.chunks) for record in done),
        client_share=cpu_seconds / seconds,
        counted=sum(record.has_usage for record in done),
    )
