"""What a step costs the driver: planning it, telling the stages, its tokens, their text. No torch.

Driver, control channels, text and reader are those of an engine; only the stages are made up, and
answer at once. The figures are the driver's own spans, as in a trace. A driver that is fast in a
loop need not be in a run, where every step of the stages fills the processor's caches with weights:
so each case is measured with caches as they are and with caches full of something else.
"""

from __future__ import annotations

import itertools
import queue
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ppinfer.bench.named import Subject
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table
from ppinfer.bench.throughput import Notice
from ppinfer.comm.control import Channel
from ppinfer.config import EngineConfig
from ppinfer.engine.detokenizer import Detokenizer
from ppinfer.engine.driver import Driver
from ppinfer.engine.live import Item, LiveRequest
from ppinfer.engine.report import StageLayout
from ppinfer.engine.source import ModelSource
from ppinfer.engine.stream import Stream
from ppinfer.engine.supervisor import Supervisor
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.launch.process import StageProcess
from ppinfer.messages import (
    Message,
    SampledToken,
    StageStats,
    StageTrace,
    StatsRequest,
    StepPlan,
    StepResult,
    ToDriver,
    TraceRequest,
    decode_to_stage,
    encode,
)
from ppinfer.percentile import percentile
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.trace.model import DRIVER_WORK, Trace

_STAGES = 2
_PROMPT_TOKENS = 16
"""The shortest prompt; the others are up to a block longer, so that blocks do not all end at once.
"""
_TEXT = (
    "The driver makes text of tokens as they come. Der Fluss fließt über die Brücke, "
    "et l'été dernier était très chaud; 東京は大きな都市です。 x = 3.14159  # about pi 🙂\n"
)
_SWEPT_BYTES = 96 << 20
"""What stands for the stages' weights: more than a processor caches."""
_REST_SECONDS = 0.002
"""Time for the reader to be done before the next step, as it is in a run."""
_TIMEOUT = 60.0


@dataclass
class DriverCell:
    """Steps of one size; times are seconds a step, and each list has an entry a turn.

    Attributes:
        sequences: that run together.
        micro_batches: over which they are spread: a step holds as many of them as one does.
        swept: whether the caches were full of something else.
        parts: medians of each part of the work, by its name in a trace.
        totals: medians of all parts together.
        tails: the same at the 99th percentile.
    """

    sequences: int
    micro_batches: int
    swept: bool
    parts: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    tails: list[float] = field(default_factory=list)

    @property
    def step_sequences(self) -> int:
        return -(-self.sequences // self.micro_batches)


def measure_driver(
    subject: Subject,
    sequences: Sequence[int],
    micro_batches: Sequence[int],
    new_tokens: int,
    repeats: int,
    notice: Notice,
) -> Iterator[list[DriverCell]]:
    """Every number of sequences in every number of micro-batches; yields all cells after each."""
    source = ModelSource(subject.path, load_format=subject.load_format)
    vocab_size = source.open().vocab_size
    tokenizer = source.tokenizer()
    answers = list(range(min(vocab_size, 1000))) if tokenizer is None else tokenizer.encode(_TEXT)
    cases = [(n, m) for n in sequences for m in micro_batches if m <= n]
    cells: list[DriverCell] = []
    for done, (count, slots) in enumerate(cases):
        fresh = [DriverCell(count, slots, swept) for swept in (False, True)]
        cells += fresh
        for cell in (cell for _ in range(repeats) for cell in fresh):
            notice(f"{count} sequences in {slots} micro-batches", done, len(cases))
            _measure(cell, tokenizer, answers, new_tokens)
        yield cells


def _measure(
    cell: DriverCell, tokenizer: Tokenizer | None, answers: Sequence[int], new_tokens: int
) -> None:
    """One turn: everybody's prompt, then steps in which everybody gets a token."""
    config = EngineConfig()
    longest = _PROMPT_TOKENS + config.block_size + new_tokens
    pool = BlockPool(cell.sequences * -(-longest // config.block_size), config.block_size)
    manager = MicroBatchManager(cell.micro_batches, cell.sequences, pool, config.prefix_caching)
    schedule = GenerateSchedule(manager, cell.sequences * longest)
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    sink: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
    requests = []
    for index in range(cell.sequences):
        length = _PROMPT_TOKENS + index % config.block_size
        ids = tuple(itertools.islice(itertools.cycle(answers), index, index + length))
        text = None if tokenizer is None else Detokenizer(tokenizer)
        requests.append(LiveRequest(Request(index, ids, params), index, sink, text))
    supervisor = _EchoSupervisor(answers, _sweep() if cell.swept else None)
    driver = Driver(supervisor, manager, schedule, [StageLayout(0, 0, 0, 0)] * _STAGES,
                    timeout=_TIMEOUT)  # fmt: skip
    driver.start()
    try:
        driver.trace(True)
        with Stream(driver, sink, requests) as stream:
            for _ in stream:
                pass
        trace = driver.trace(False)
    finally:
        driver.close()
    assert trace is not None
    rounds = full_rounds(trace, cell.step_sequences)
    for name in DRIVER_WORK:
        median = Spread.of([work.get(name, 0.0) for work in rounds]).median
        cell.parts.setdefault(name, []).append(median)
    totals = [sum(work.values()) for work in rounds]
    cell.totals.append(Spread.of(totals).median)
    cell.tails.append(percentile(totals, 0.99))


def full_rounds(trace: Trace, sequences: int) -> list[dict[str, float]]:
    """Seconds of each part of the driver's work between two waits: of those rounds alone in which a
    decode step of so many sequences came back."""
    rounds: list[dict[str, float]] = []
    work: dict[str, float] = {}
    is_full = False
    for span in trace.driver.spans:
        if span.activity == "wait":
            if is_full:
                rounds.append(work)
            work, is_full = {}, False
            continue
        work[span.activity] = work.get(span.activity, 0.0) + (span.end - span.start) / 1e9
        if span.activity == "commit":
            facts = trace.steps[span.step]
            is_full = facts.is_decode and facts.sequences == sequences
    return rounds


def _sweep() -> Callable[[], object]:
    """Reads more memory than a processor caches."""
    memory = bytearray(b"\1") * _SWEPT_BYTES
    return lambda: memory.find(b"\0")


# ---------------------------------------------------------------- stages that answer at once


class _EchoLauncher:
    """Stages of which only the ends of the control channels exist."""

    store = "none"
    shares_memory = False

    def __init__(self) -> None:
        self.channels: list[Channel] = []

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]:
        pairs = [socket.socketpair() for _ in range(_STAGES)]
        self.channels = [Channel(theirs) for _, theirs in pairs]
        return [
            StageProcess(stage, Channel(ours, _TIMEOUT)) for stage, (ours, _) in enumerate(pairs)
        ]

    def close(self) -> None:
        for channel in self.channels:
            channel.close()


class _EchoSupervisor(Supervisor):
    """Does the stages' part on the driver's thread, while the driver waits.

    Every sequence is answered with ``answers`` in turn. ``before`` is called before an answer.
    """

    def __init__(self, answers: Sequence[int], before: Callable[[], object] | None) -> None:
        self._echo = _EchoLauncher()
        super().__init__(self._echo)
        self.start(threads=None, model_fd=None)
        self._answers = answers
        self._before = before
        self._plans: deque[StepPlan] = deque()

    def poll(
        self, timeout: float | None, on_ready: Callable[[], None] | None = None
    ) -> list[ToDriver]:
        for stage, channel in enumerate(self._echo.channels):
            while select.select([channel], [], [], 0)[0]:
                for frame in channel.receive_ready():
                    self._hear(stage, channel, decode_to_stage(frame))
        if self._plans:
            plan = self._plans.popleft()
            time.sleep(_REST_SECONDS)
            result = encode(StepResult(plan.step_id, self._draw(plan)))
            if self._before is not None:
                self._before()
            self._echo.channels[-1].send(result)
        return super().poll(timeout, on_ready)

    def _hear(self, stage: int, channel: Channel, message: Message) -> None:
        if isinstance(message, StepPlan) and stage == _STAGES - 1:
            self._plans.append(message)
        elif isinstance(message, TraceRequest):
            channel.send(encode(StageTrace(stage, time.perf_counter_ns())))
        elif isinstance(message, StatsRequest):
            channel.send(encode(StageStats(stage, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)))

    def _draw(self, plan: StepPlan) -> list[SampledToken]:
        answers = self._answers
        first = plan.step_id
        return [
            SampledToken(seq_id, answers[(first + seq_id) % len(answers)])
            for seq_id in plan.sampled
        ]


# ---------------------------------------------------------------- the table


def table(cells: Sequence[DriverCell], model: str) -> Table:
    made = Table(
        f"The driver's work with text by the tokenizer of {model}, µs a step",
        ["sequences", "caches", *DRIVER_WORK, "total", "p99"],
        labels=2,
    )
    for cell in cells:
        if not cell.swept and made.rows:
            made.breaks.append(len(made.rows))
        made.rows.append(
            [
                f"{cell.sequences} in {cell.micro_batches}",
                "swept" if cell.swept else "warm",
                *(_micros(Spread.of(cell.parts[name]).median) for name in DRIVER_WORK),
                _micros(Spread.of(cell.totals).median),
                _micros(Spread.of(cell.tails).median),
            ]
        )
    made.notes = [
        "32 in 2: 32 sequences in 2 micro-batches, so 16 in a step. swept: before each answer the "
        "processor's caches were filled with other data, as they are by the stages' weights in a "
        "run; warm: they were left as they are."
    ]
    return made


def _micros(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"
