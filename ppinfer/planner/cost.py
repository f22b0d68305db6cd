"""How long a stage's step takes and how much memory it holds, by bytes and operations.

The roofline model (Williams, Waterman, Patterson 2009): a product takes as long as its weights take
to be read or its operations to be done, whichever is longer, each at a part of what the device can
do. Added to it is what launching a layer and beginning a step take. Seven parameters a system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from ppinfer.errors import ConfigError
from ppinfer.messages import StepCosts
from ppinfer.planner.hardware import Device
from ppinfer.planner.shape import ITEM_BYTES, ModelShape
from ppinfer.planner.work import StepWork
from ppinfer.schedule.partition import StageRange
from ppinfer.schedule.tuning import PREFILL_CHUNKS


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """The parts of a step on one stage, as its clock names them."""

    prepare: float
    compute: float
    sample: float
    send: float = 0.0

    @property
    def after_input(self) -> float:
        """All but what can be prepared before the input comes."""
        return self.compute + self.sample + self.send

    def stretched(self, prepare: float, after_input: float) -> StepSeconds:
        """The same work where it takes so long."""
        factor = after_input / self.after_input if self.after_input else 1.0
        return StepSeconds(prepare, self.compute * factor, self.sample * factor, self.send * factor)


class StageCost(Protocol):
    """How long one stage takes for a step. Stages that are equal take equally long."""

    def step(self, work: StepWork, threads: int) -> StepSeconds:
        """``threads`` are those of the plan, 0 where the stage decides itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What software makes of a device.

    Attributes:
        bandwidth: part of the memory's bandwidth at which weights are read.
        kv_bandwidth: the same for keys and values.
        peak: part of the peak rate that products reach.
        layer_seconds: what a layer takes beside that: launches, norms, rotary positions.
        step_seconds: what a step takes beside its layers: plans, indices, drawing.
        attention: part of the peak rate that attention reaches; ``None`` as products do.
        launch_seconds: the least that a layer takes in a step with prompts, whose kernels are
            started one by one where those of other steps are not.

    Raises:
        ConfigError: a part above 1, or a negative time.
    """

    bandwidth: float
    kv_bandwidth: float
    peak: float
    layer_seconds: float
    step_seconds: float
    attention: float | None = None
    launch_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "kv_bandwidth", "peak", "attention"):
            part = getattr(self, name)
            if part is not None and not 0 < part <= 1:
                raise ConfigError(
                    f"{name} must be a part of what a device can do, above 0 and at most 1, not "
                    f"{getattr(self, name)}."
                )
        for name in ("layer_seconds", "step_seconds", "launch_seconds"):
            if not 0 <= getattr(self, name) < 10:
                raise ConfigError(f"{name} must be seconds from 0 on, not {getattr(self, name)}.")


USUAL = Efficiency(
    bandwidth=0.74,
    kv_bandwidth=0.61,
    peak=0.4,
    attention=0.06,
    layer_seconds=40e-6,
    step_seconds=600e-6,
    launch_seconds=420e-6,
)
"""Of our kernels on one H200 (docs/results/gpu.md); that others are used as well is a guess."""


@dataclass(frozen=True)
class RooflineCost:
    """A stage of some layers on a device; equal to others that do as much.

    Raises:
        ConfigError: the device does not compute in this dtype.
    """

    device: Device
    model: ModelShape
    layers: StageRange = field(compare=False)
    dtype: str
    efficiency: Efficiency = USUAL
    _does: tuple[int, bool, bool] = field(init=False, repr=False)  # layers, embedding, head

    def __post_init__(self) -> None:
        self.device.require(self.dtype)
        first, last = self.layers
        does = (last - first, first == 0, last == self.model.num_layers)
        object.__setattr__(self, "_does", does)

    def step(self, work: StepWork, threads: int = 0) -> StepSeconds:
        num_layers, embeds, has_head = self._does
        compute = num_layers * self.layer_seconds(work)
        if embeds:
            compute += self._read(work.tokens * self.model.hidden_size)
        sample = self.head_seconds(work.samples) if has_head else 0.0
        return StepSeconds(self.efficiency.step_seconds, compute, sample)

    def layer_seconds(self, work: StepWork) -> float:
        seconds = (
            self.efficiency.layer_seconds
            + self._product(self.model.layer_parameters, work.tokens)
            + self._attention(work)
        )
        return max(seconds, self.efficiency.launch_seconds) if work.prompt_pairs else seconds

    def head_seconds(self, rows: int) -> float:
        """Norm, head and drawing for so many rows, whose logits are written and read once."""
        if not rows:
            return 0.0
        logits = 2 * rows * self.model.vocab_size
        return self._product(self.model.head_parameters, rows) + self._read(logits)

    def _attention(self, work: StepWork) -> float:
        kv_bytes = self.model.kv_bytes(1, self.dtype)
        read = (work.decode_context + work.prompt_context) * kv_bytes / self._kv_bandwidth
        operations = 4 * self.model.q_size * (work.prompt_pairs + work.decode_context)
        share = self.efficiency.attention or self.efficiency.peak
        return max(read, operations / (self.device.peak[self.dtype] * share))

    def _product(self, parameters: int, rows: int) -> float:
        return max(self._read(parameters), 2 * parameters * rows / self._peak)

    def _read(self, numbers: int) -> float:
        bandwidth = self.device.bandwidth * self.efficiency.bandwidth
        return numbers * ITEM_BYTES[self.dtype] / bandwidth

    @cached_property
    def _peak(self) -> float:
        return self.device.peak[self.dtype] * self.efficiency.peak

    @cached_property
    def _kv_bandwidth(self) -> float:
        return self.device.bandwidth * self.efficiency.kv_bandwidth

    def table(self, max_rows: int, context: int) -> StepCosts:
        """The same as a stage would measure it: what cuts the model and tunes the pipeline.

        Args:
            max_rows: most sequences of a decode step.
            context: tokens that each of them has.
        """
        rows = [2**i for i in range((max_rows - 1).bit_length() + 1)]
        far = 4 * context + 4096
        slope = self._attention(StepWork.decode(max_rows, far)) - self._attention(
            StepWork.decode(max_rows, context)
        )
        chunk = 512
        pairs = self._attention(StepWork.prefill(1, chunk, far)) - self._attention(
            StepWork.prefill(1, chunk, 0)
        )
        return StepCosts(
            threads=1,
            decode=tuple((n, self.layer_seconds(StepWork.decode(n, context))) for n in rows),
            prefill=tuple((n, self.layer_seconds(StepWork.prefill(1, n))) for n in PREFILL_CHUNKS),
            head=tuple((n, self.head_seconds(n)) for n in rows),
            embed=tuple((n, self._read(n * self.model.hidden_size)) for n in (1, *PREFILL_CHUNKS)),
            prepare=((1, self.efficiency.step_seconds), (2**20, self.efficiency.step_seconds)),
            context=context,
            decode_context=slope / (max_rows * (far - context)),
            prefill_context=pairs / (chunk * far),
        )
