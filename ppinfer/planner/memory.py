"""What a stage holds: weights, KV cache, and what a step needs while it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.planner.shape import ITEM_BYTES, ModelShape
from ppinfer.schedule.partition import LayerCosts, StageRange

WORKSPACE = 512 << 20
"""Bytes for the libraries of a device: handles, kernels, buffers of a product."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes; ``kv_block`` is one block of all of the stage's layers."""

    weights: int
    activations: int
    logits: int
    workspace: int
    kv_block: int

    @property
    def without_kv(self) -> int:
        return self.weights + self.activations + self.logits + self.workspace

    def blocks_in(self, num_bytes: int) -> int:
        """KV blocks that fit beside all else; negative where not even that fits."""
        return (num_bytes - self.without_kv) // self.kv_block


def stage_memory(
    model: ModelShape,
    layers: StageRange,
    dtype: str,
    *,
    max_step_tokens: int,
    max_sequences: int,
    block_size: int,
    workspace: int = WORKSPACE,
) -> StageMemory:
    """What a stage of these layers holds; logits are computed in fp32 for sampled rows only."""
    first, last = layers
    item = ITEM_BYTES[dtype]
    is_last = last == model.num_layers
    return StageMemory(
        weights=item * stage_parameters(model, layers),
        activations=item * max_step_tokens * activation_numbers(model),
        logits=(item + 4) * max_sequences * model.vocab_size if is_last else 0,
        workspace=workspace,
        kv_block=block_size * model.kv_bytes(last - first, dtype),
    )


def stage_parameters(model: ModelShape, layers: StageRange) -> int:
    first, last = layers
    count = (last - first) * model.layer_parameters
    count += model.embedding_parameters if first == 0 else 0
    count += model.head_parameters if last == model.num_layers else 0
    return count


def activation_numbers(model: ModelShape) -> int:
    """Numbers that a token needs at once in a layer: residual and normed, q, k and v, and the two
    halves of the gated MLP with their product."""
    return 3 * model.hidden_size + 2 * model.q_size + 2 * model.kv_size + 3 * inner_size(model)


def inner_size(model: ModelShape) -> int:
    """Of the gated MLP, whose three matrices are what attention's leave of a layer."""
    attention = 2 * model.hidden_size * (model.q_size + model.kv_size)
    return (model.layer_parameters - attention) // (3 * model.hidden_size)


def layer_costs(model: ModelShape, dtype: str) -> LayerCosts:
    """Sizes for cutting the model, and costs estimated from them.

    A cost is the number of weights that a token's step reads: all of a layer's and of the head's,
    of the embedding one row. Bytes are those of the weights.
    """
    item = ITEM_BYTES[dtype]
    return LayerCosts(
        layers=(float(model.layer_parameters),) * model.num_layers,
        embed=float(model.hidden_size),
        head=float(model.head_parameters),
        layer_bytes=(model.layer_parameters * item,) * model.num_layers,
        embed_bytes=model.embedding_parameters * item,
        head_bytes=model.head_parameters * item,
    )
