"""What the two systems held at most on their fullest device, phase by phase.

The phases follow each other and are not summed: the prompts' last layer, whose scores are alive
beside all caches; the logits of all the prompts' rows; and the end of decoding, where the caches
are longest and ``torch.cat`` has made new ones while the old are still referred to.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.planner.memory import stage_parameters
from ppinfer.planner.published.eager import HEAD_SIZE
from ppinfer.planner.published.figures import Cell
from ppinfer.planner.shape import ITEM_BYTES
from ppinfer.schedule.partition import StageRange

STAGES = 2

SCORE_HELD = {2: 2 + 4 + 2, 4: 4 + 4}
"""Bytes alive for a score, by those of a number: what softmax reads, its fp32, that cast down."""

LOST = 1 / 16
"""Of the largest block of the prefill, the part that no cache of decoding can use. The allocator
cuts such blocks into caches of a layer, of which 8 fit into one of scores where a prompt has 1,024
tokens; caches grow with every token, and on average half of one is left over."""


@dataclass(frozen=True)
class Peak:
    """Bytes by phase, on the fullest device."""

    attention: int
    logits: int
    decode: int

    @property
    def most(self) -> int:
        return max(self.attention, self.logits, self.decode)

    @property
    def phase(self) -> str:
        """Of the peak, in words."""
        parts = {
            "prefill, attention": self.attention,
            "prefill, logits": self.logits,
            "decoding": self.decode,
        }
        return max(parts, key=parts.__getitem__)


def pipeline_peak(cell: Cell) -> Peak:
    """The first stage has embedding and head; the caches of a round's micro-batches, one of them
    twice while it grows; scores and logits of one."""
    layers = cell.model.num_layers // STAGES
    held = stage_parameters(cell.model, (0, layers)) + cell.model.head_parameters
    return _peak(cell, (0, layers), held, STAGES * cell.micro_batch, cell.micro_batch, False)


def hugging_face_peak(cell: Cell) -> Peak:
    """The last device has the head; ``generate`` holds the whole old cache until a step is done,
    and casts all logits up."""
    layers = (cell.model.num_layers // STAGES, cell.model.num_layers)
    held = stage_parameters(cell.model, layers)
    return _peak(cell, layers, held, cell.batch, cell.batch, True)


def _peak(
    cell: Cell, layers: StageRange, parameters: int, cached: int, at_once: int, fp32_logits: bool
) -> Peak:
    """``cached`` sequences have caches, of which ``at_once`` are computed together."""
    model, item = cell.model, ITEM_BYTES[cell.dtype]
    weights = parameters * item
    a_token = model.kv_bytes(layers[1] - layers[0], cell.dtype)
    prompts = weights + cached * cell.prompt * a_token
    heads = model.q_size // HEAD_SIZE
    scores = at_once * heads * cell.prompt**2 * SCORE_HELD[item]
    logit = item + (4 if fp32_logits and item < 4 else 0)
    logits = at_once * cell.prompt * model.vocab_size * logit
    longest = cell.prompt + cell.new - 1
    copied = at_once if cell.new > 1 else 0
    return Peak(
        attention=prompts + scores,
        logits=prompts + logits,
        decode=weights + (cached + copied) * longest * a_token + int(LOST * max(scores, logits)),
    )
