"""What a step takes in eager PyTorch: every operation reads its inputs and writes its output.

Products follow the roofline, as in ``planner/cost.py``. Beside them eager code moves numbers that a
fused kernel would keep: attention writes and reads its scores several times, norms go through fp32,
and ``torch.cat`` copies the whole KV cache for every token. What each operation moves is counted
from the code of Llama in transformers 4.3x. A layer takes its products, its traffic and its
launches one after the other: the small kernels between products end before the next is launched.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.planner.cost import Efficiency, StepSeconds
from ppinfer.planner.hardware import Device
from ppinfer.planner.memory import inner_size
from ppinfer.planner.shape import ITEM_BYTES, ModelShape
from ppinfer.planner.work import StepWork
from ppinfer.schedule.partition import StageRange

HEAD_SIZE = 128
"""Of every head of Llama: how many scores a query has for each key."""

SCORE_BYTES = {2: 24, 4: 32}
"""Moved for a score, by the bytes of a number: the product writes it, the scale and the mask read
and write it each, softmax reads it and writes fp32, which is cast down, and the last product reads
it."""

HIDDEN_BYTES = {2: 128, 4: 168}
"""Moved in a layer for each of a token's hidden numbers: two norms through fp32, rotary positions
of q and k, two residual sums, heads put side by side."""

INNER_MOVES = 5
"""Numbers moved in a layer for each of the MLP's inner ones: the activation, and the product."""

CACHE_MOVES = 3
"""How often decoding moves the cache: ``torch.cat`` reads and writes it, attention reads it."""


@dataclass(frozen=True)
class EagerCost:
    """A stage of some layers on a device.

    Attributes:
        concatenates: the cache is copied for every token; otherwise it is written in place.
        fp32_logits: logits are cast up before a token is drawn.
    """

    device: Device
    model: ModelShape
    layers: StageRange
    dtype: str
    efficiency: Efficiency
    concatenates: bool = True
    fp32_logits: bool = False

    def step(self, work: StepWork, threads: int = 0) -> StepSeconds:
        """With the head on the last stage, for sampled rows only: as in ppinfer's own schedule."""
        is_last = self.layers[1] == self.model.num_layers
        head = self.head_seconds(work.samples) if is_last and work.samples else 0.0
        return StepSeconds(self.efficiency.step_seconds, self.layers_seconds(work), head)

    def layers_seconds(self, work: StepWork) -> float:
        """All layers of the stage."""
        model, item = self.model, ITEM_BYTES[self.dtype]
        heads = model.q_size // HEAD_SIZE
        # Eager attention computes what the mask hides, too.
        scores = 2 * work.prompt_pairs + work.decode_context
        a_token = HIDDEN_BYTES[item] * model.hidden_size + INNER_MOVES * item * inner_size(model)
        moved = work.tokens * a_token + SCORE_BYTES[item] * heads * scores
        moves = CACHE_MOVES if self.concatenates else 1
        cached = moves * work.decode_context + work.prompt_context
        layer = (
            self.efficiency.layer_seconds
            + self._product(model.layer_parameters, work.tokens)
            + 4 * model.q_size * 2 * work.prompt_pairs / self._peak
            + moved / self._bandwidth
            + cached * model.kv_bytes(1, self.dtype) / self._kv_bandwidth
        )
        return (self.layers[1] - self.layers[0]) * layer

    def head_seconds(self, rows: int) -> float:
        """Logits of so many rows, which are written, read, and maybe cast up."""
        item = ITEM_BYTES[self.dtype]
        moved = 2 * item + (4 if self.fp32_logits and item < 4 else 0)
        return (
            self._product(self.model.head_parameters, rows)
            + moved * rows * self.model.vocab_size / self._bandwidth
        )

    def _product(self, parameters: int, rows: int) -> float:
        read = parameters * ITEM_BYTES[self.dtype] / self._bandwidth
        return max(read, 2 * parameters * rows / self._peak)

    @property
    def _bandwidth(self) -> float:
        return self.device.bandwidth * self.efficiency.bandwidth

    @property
    def _kv_bandwidth(self) -> float:
        return self.device.bandwidth * self.efficiency.kv_bandwidth

    @property
    def _peak(self) -> float:
        return self.device.peak[self.dtype] * self.efficiency.peak
