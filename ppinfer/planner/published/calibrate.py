"""The parameters of each system, fitted to some of the figures and judged on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ppinfer.planner.cost import Efficiency
from ppinfer.planner.published.eager import EagerCost
from ppinfer.planner.published.figures import GIB, HUGGING_FACE, PIPELINE, Cell, Figures
from ppinfer.planner.published.fit import from_line, least_absolute, to_line
from ppinfer.planner.published.peaks import STAGES, Peak, hugging_face_peak, pipeline_peak
from ppinfer.planner.published.systems import hugging_face_seconds, pipeline_seconds

FITTED_COLUMNS = ("2(1)", "8(4)")


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Of a system on the devices of the tables.

    Attributes:
        layer_seconds: for each layer of a step, of launches that no work of the device hides.
        bandwidth: part of the memory's bandwidth at which weights and activations move.
        kv_bandwidth: the same for the KV cache.
        peak_fp16, peak_fp32: part of the peak rate that products reach: with tensor cores, and
            without, since PyTorch leaves TF32 off unless asked.
        start_seconds: once a process: libraries, communicators, the first of every allocation.
        usable_gib: of a device's memory.
    """

    layer_seconds: float = 4e-4
    bandwidth: float = 0.8
    kv_bandwidth: float = 0.6
    peak_fp16: float = 0.5
    peak_fp32: float = 0.4
    start_seconds: float = 0.0
    usable_gib: float

    def efficiency(self, dtype: str) -> Efficiency:
        return Efficiency(
            bandwidth=self.bandwidth,
            kv_bandwidth=self.kv_bandwidth,
            peak={"fp16": self.peak_fp16, "fp32": self.peak_fp32}[dtype],
            layer_seconds=self.layer_seconds,
            step_seconds=0.0,
        )


_MOST_SECONDS = 5.0
_SHARES = ("bandwidth", "kv_bandwidth", "peak_fp16", "peak_fp32")


@dataclass(frozen=True)
class System:
    """
    Attributes:
        title: for people.
        timed: the parameters that are fitted to its times.
        fits_memory: whether what is usable of a device is fitted as well, or as the source says.
        seconds: of the whole run.
        peak: bytes on its fullest device.
    """

    name: str
    title: str
    timed: tuple[str, ...]
    fits_memory: bool
    seconds: Callable[[Figures, Cell, Parameters], float]
    peak: Callable[[Cell], Peak]

    @property
    def fitted(self) -> tuple[str, ...]:
        return (*self.timed, "usable_gib") if self.fits_memory else self.timed


def pipeline_stages(figures: Figures, cell: Cell, found: Parameters) -> list[EagerCost]:
    """Half of the layers each."""
    cut = [round(cell.model.num_layers * part / STAGES) for part in range(STAGES + 1)]
    return [
        EagerCost(figures.device, cell.model, layers, cell.dtype, found.efficiency(cell.dtype))
        for layers in pairwise(cut)
    ]


def _pipeline(figures: Figures, cell: Cell, found: Parameters) -> float:
    stages = pipeline_stages(figures, cell, found)
    return found.start_seconds + pipeline_seconds(cell, stages, figures.link)


def _hugging_face(figures: Figures, cell: Cell, found: Parameters) -> float:
    whole = EagerCost(
        figures.device,
        cell.model,
        (0, cell.model.num_layers),
        cell.dtype,
        found.efficiency(cell.dtype),
        fp32_logits=True,
    )
    return found.start_seconds + hugging_face_seconds(cell, whole)


_TIMED = ("layer_seconds", "bandwidth", "kv_bandwidth", "peak_fp16", "peak_fp32")

SYSTEMS = (
    System(PIPELINE, "Pipeline", (*_TIMED, "start_seconds"), False, _pipeline, pipeline_peak),
    # The reach of its cells shows that it had more memory than was stated; that its first run was
    # counted, nothing shows.
    System(HUGGING_FACE, "Hugging Face", _TIMED, True, _hugging_face, hugging_face_peak),
)


@dataclass(frozen=True)
class Calibrated:
    """A system with the parameters that were found."""

    system: System
    figures: Figures
    parameters: Parameters

    def fits(self, cell: Cell) -> bool:
        return self.system.peak(cell).most <= self.parameters.usable_gib * GIB

    def rate(self, cell: Cell) -> float:
        """Output tokens/s, whether or not memory would do."""
        return cell.new_tokens / self.system.seconds(self.figures, cell, self.parameters)

    def error(self, cell: Cell) -> float:
        """As a part of the figure, which there must be; negative where too little is predicted."""
        figure = cell.figures[self.system.name]
        assert figure is not None
        return self.rate(cell) / figure - 1


@dataclass(frozen=True)
class Errors:
    """Of some cells: absolute on average, and the worst one with its sign."""

    mean: float
    worst: float
    cells: int

    @classmethod
    def of(cls, calibrated: Calibrated, cells: Sequence[Cell]) -> Errors:
        errors = [calibrated.error(cell) for cell in cells]
        return cls(sum(map(abs, errors)) / len(errors), max(errors, key=abs), len(errors))


@dataclass(frozen=True)
class Judged:
    """
    Attributes:
        fitted, held_out: errors on the columns that were fitted to, and on all others.
        without: errors on each column of parameters that were fitted to all columns but it.
        verdicts: cells whose memory was told right, out of memory or not.
    """

    calibrated: Calibrated
    fitted: Errors
    held_out: Errors
    without: dict[str, Errors]
    verdicts: int


def judge(system: System, figures: Figures) -> Judged:
    cells = ran(system, figures.cells)
    half = [cell for cell in figures.cells if cell.column in FITTED_COLUMNS]
    calibrated = Calibrated(system, figures, fit(system, figures, half))
    without = {}
    for column in dict.fromkeys(cell.column for cell in cells):
        others = [cell for cell in figures.cells if cell.column != column]
        left_out = Calibrated(system, figures, fit(system, figures, others))
        without[column] = Errors.of(left_out, [cell for cell in cells if cell.column == column])
    return Judged(
        calibrated,
        Errors.of(calibrated, [cell for cell in cells if cell.column in FITTED_COLUMNS]),
        Errors.of(calibrated, [cell for cell in cells if cell.column not in FITTED_COLUMNS]),
        without,
        sum(calibrated.fits(cell) == (cell in cells) for cell in figures.cells),
    )


def fit(system: System, figures: Figures, cells: Sequence[Cell]) -> Parameters:
    """The parameters with which the absolute errors on these cells are least.

    Memory that is fitted is the least with which every cell that ran does fit, from what the source
    says on.
    """
    cells = ran(system, cells)
    usable = figures.usable_gib
    if system.fits_memory:
        usable = max(usable, *(system.peak(cell).most / GIB for cell in cells))
    first = Parameters(usable_gib=usable)
    if "start_seconds" in system.timed:
        first = replace(first, start_seconds=1.0)
    tops = [1.0 if name in _SHARES else _MOST_SECONDS for name in system.timed]

    def parameters(places: Sequence[float]) -> Parameters:
        values = map(from_line, places, tops)
        return replace(first, **dict(zip(system.timed, values, strict=True)))

    def residuals(places: Sequence[float]) -> list[float]:
        tried = Calibrated(system, figures, parameters(places))
        return [math.log(1 + tried.error(cell)) for cell in cells]

    start = [
        to_line(getattr(first, name), top) for name, top in zip(system.timed, tops, strict=True)
    ]
    return parameters(least_absolute(residuals, start))


def ran(system: System, cells: Sequence[Cell]) -> list[Cell]:
    """Those for which a figure is published."""
    return [cell for cell in cells if cell.figures[system.name] is not None]
