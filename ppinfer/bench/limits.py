"""How fast a run could be: by the machine's bytes and operations, and by its measured kernels.

Both count the least work that ends with the same tokens. ``B`` sequences with prompts of ``P``
tokens that get ``N`` new ones take one prefill of ``B P`` tokens and ``N - 1`` decode steps of
``B``; the head computes ``B N`` rows, one a new token.

**The physical limit** is the sum over these steps of the longer of two times: bytes (each weight
once a step, keys and values of all earlier positions) over the measured read bandwidth, and
operations (two a weight and row, four a visible position, query head and element) over the measured
rate of a large matrix product. So transfer and arithmetic overlap perfectly, within a step only.

**The ceiling** replaces the linear layers' part by what the packed kernel takes for the model's own
shapes, cycling over all its layers, at the rows of the step (Python's share of a call left out, as
measured on a tiny layer); attention is still at the physical
limit, and everything else is free. The cores are arranged as is best for each step: all of them on
one product, or each on a micro-batch and a share of the layers of its own, all at the same time
(the head goes along). Prompts go in chunks of whichever measured size is fastest. No engine that
uses these kernels can be faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ppinfer.bench.cases import Shape
from ppinfer.models.config import ModelConfig

CHUNKS = (512, 2048)
"""Tokens of a prefill chunk at which kernels are measured."""


@dataclass(frozen=True)
class Rates:
    """Of all cores together: bytes read/s, and operations/s of a matrix product."""

    bandwidth: float
    peak: float


@dataclass(frozen=True)
class Arrangement:
    """Seconds of the linear layers for all rows of a step, by rows that one product has.

    ``teams`` products run at the same time, so a step of R rows has products of R / teams rows.
    """

    teams: int
    layers: Mapping[int, float] = field(default_factory=dict)
    head: Mapping[int, float] = field(default_factory=dict)

    def step(self, rows: int) -> float:
        """Layers and head on ``rows`` rows; infinite where there is not a row for each team."""
        part = share_of(rows, self.teams)
        return math.inf if part is None else self.layers[part] + self.head[part]

    def head_step(self, rows: int) -> float:
        """The head alone."""
        part = share_of(rows, self.teams)
        return math.inf if part is None else self.head[part]

    def token(self) -> float:
        """Seconds of a prompt token's layers, in the best chunk that was measured."""
        each = [self.layers[n] / (n * self.teams) for n in CHUNKS if n in self.layers]
        return min(each, default=math.inf)


def share_of(rows: int, teams: int) -> int | None:
    """Rows of each of ``teams`` micro-batches, or ``None`` where there are too few rows."""
    return -(-rows // teams) if rows >= teams else None


def rows_to_measure(shapes: Sequence[Shape], teams: int) -> list[int]:
    """At which rows an arrangement of so many teams has to be known."""
    decode = {share_of(shape.batch, teams) for shape in shapes}
    most = max(shape.prompt_tokens for shape in shapes)
    prefill = {size for size in CHUNKS if size <= max(most, CHUNKS[0])}
    return sorted({rows for rows in decode if rows is not None} | prefill)


def physical_seconds(model: ModelConfig, shape: Shape, itemsize: int, rates: Rates) -> float:
    """Least seconds of a run, by bytes and operations."""
    work = _Work(model, itemsize)
    rows = shape.prompt_tokens
    operations = rows * work.layer_operations + shape.batch * work.head_operations
    operations += shape.batch * work.prefill_attention_operations(shape.prompt)
    total = max(work.weight_bytes / rates.bandwidth, operations / rates.peak)
    for position in range(shape.prompt + 1, shape.prompt + shape.new):
        bytes_read = work.weight_bytes + shape.batch * work.kv_bytes(position)
        operations = shape.batch * (work.layer_operations + work.head_operations)
        operations += shape.batch * work.attention_operations(position)
        total += max(bytes_read / rates.bandwidth, operations / rates.peak)
    return total


def ceiling_seconds(
    model: ModelConfig,
    shape: Shape,
    itemsize: int,
    rates: Rates,
    arrangements: Sequence[Arrangement],
) -> float:
    """Least seconds of a run with the kernels as measured."""
    work = _Work(model, itemsize)
    attention = shape.batch * work.prefill_attention_operations(shape.prompt) / rates.peak
    for position in range(shape.prompt + 1, shape.prompt + shape.new):
        read = work.kv_bytes(position) / rates.bandwidth
        computed = work.attention_operations(position) / rates.peak
        attention += shape.batch * max(read, computed)
    step = min(arrangement.step(shape.batch) for arrangement in arrangements)
    first = min(arrangement.head_step(shape.batch) for arrangement in arrangements)
    prefill = shape.prompt_tokens * min(a.token() for a in arrangements) + first
    return prefill + (shape.new - 1) * step + attention


class _Work:
    """Bytes and operations of one model."""

    def __init__(self, model: ModelConfig, itemsize: int) -> None:
        self._model = model
        self._itemsize = itemsize
        layers = model.num_layers * model.layer_parameters
        self.weight_bytes = (layers + model.head_parameters) * itemsize
        self.layer_operations = 2 * layers
        self.head_operations = 2 * model.head_parameters

    def kv_bytes(self, position: int) -> int:
        """What one sequence reads of its cache to compute the token at ``position``, from 1."""
        return 2 * self._visible(position) * self._model.kv_size * self._itemsize

    def attention_operations(self, position: int) -> int:
        return 4 * self._visible(position) * self._model.q_size

    def prefill_attention_operations(self, prompt: int) -> int:
        return sum(map(self.attention_operations, range(1, prompt + 1)))

    def _visible(self, position: int) -> int:
        """Positions that a token sees, summed over the layers."""
        return sum(min(position, window or position) for window in self._model.windows)
