"""What a benchmark writes down; plain data that becomes JSON. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ppinfer.bench.limits import Rates
from ppinfer.bench.stats import Spread, paired_ratios
from ppinfer.engine.cpu_time import FOREIGN_CPU

_CPU_RESOLUTION = 0.5
"""Seconds; processor time of shorter runs is known too coarsely."""


@dataclass(frozen=True)
class Run:
    """One run of one shape.

    Attributes:
        seconds: from handing the prompts over to the last token.
        prefill_seconds: until every sequence had its first token; a pipeline decodes some by then.
        first_token_seconds: median over the sequences.
        decoded: tokens that came after ``prefill_seconds``.
        token_p50, token_p99: seconds between two tokens of a sequence.
        peak_bytes: highest resident memory of each process that holds weights.
        busy: share of the run that each stage computed; empty for Hugging Face.
        steps: steps of each stage, prefill and decode; empty for Hugging Face.
        cached_tokens: prompt tokens that came out of a cache, which would make the run worthless.
        other_cpu: share of all cores that processes outside this row took.
        stolen_cpu: share of all cores that the hypervisor gave to others.
    """

    seconds: float
    prefill_seconds: float
    first_token_seconds: float
    decoded: int
    token_p50: float
    token_p99: float
    peak_bytes: list[int] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    other_cpu: float = 0.0
    stolen_cpu: float = 0.0

    @property
    def is_disturbed(self) -> bool:
        """Whether others took so much that it shows; of short runs that is not known."""
        taken = self.other_cpu + self.stolen_cpu
        return self.seconds > _CPU_RESOLUTION and taken > FOREIGN_CPU


@dataclass
class Cell:
    """One row at one shape. ``status`` is ok, oom, skipped, timeout or failed; ``why`` says more.

    ``limit`` and ``ceiling`` are output tokens/s that the machine and its kernels allow (see
    ``limits.py``), ``ratios`` those to Hugging Face turn by turn.
    """

    model: str
    dtype: str
    shape: str
    row: str
    stages: int
    micro_batches: int | None
    new_tokens: int
    prompt_tokens: int
    status: str = "ok"
    why: str = ""
    runs: list[Run] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    limit: float | None = None
    ceiling: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def is_hf(self) -> bool:
        return self.stages == 0

    @property
    def is_ok(self) -> bool:
        return self.status == "ok" and bool(self.runs)

    @property
    def rates(self) -> list[float]:
        """Output tokens/s of each run, prefill included."""
        return [self.new_tokens / run.seconds for run in self.runs]

    @property
    def tokens_per_second(self) -> Spread:
        return Spread.of(self.rates)

    @property
    def prefill_rate(self) -> Spread:
        return Spread.of([self.prompt_tokens / run.prefill_seconds for run in self.runs])

    @property
    def decode_rate(self) -> Spread:
        spans = [(run.decoded, run.seconds - run.prefill_seconds) for run in self.runs]
        return Spread.of([count / span if span > 0 else 0.0 for count, span in spans])

    @property
    def ratio(self) -> Spread | None:
        return Spread.of(self.ratios) if self.ratios else None

    def share_of(self, rate: float | None) -> float | None:
        return self.tokens_per_second.median / rate if rate else None

    def median(self, attribute: str) -> float:
        """Over the runs, of a figure of ``Run``."""
        return Spread.of([getattr(run, attribute) for run in self.runs]).median

    def stage_median(self, attribute: str) -> list[float]:
        """The same for figures with one entry a process."""
        lists = [getattr(run, attribute) for run in self.runs]
        return [Spread.of(values).median for values in zip(*lists, strict=True)]


@dataclass
class Comparison:
    """Cells of one model in one dtype, shape by shape, and what the machine can do at best.

    ``groups`` are the rows that took turns: all, unless they do not fit in memory together.
    ``repeated_turns`` were done again because something else took the cores.
    """

    model: str
    dtype: str
    rates: Rates | None
    cells: list[Cell]
    groups: list[list[str]] = field(default_factory=list)
    repeated_turns: int = 0


def compare(cells: Sequence[Cell]) -> None:
    """Fill in the ratios of one shape's cells to their Hugging Face row, where that ran."""
    base = next((cell for cell in cells if cell.is_hf and cell.is_ok), None)
    for cell in cells:
        if base is not None and cell.is_ok and not cell.is_hf:
            cell.ratios = paired_ratios(cell.rates, base.rates)
