"""A model as the planner sees it: sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder of equal layers between an embedding and a head.

    Attributes:
        name: for people.
        layer_parameters: weights of one layer.
        embedding_parameters, head_parameters: on the first and on the last stage; a matrix that
            both share is held by both.
        q_size, kv_size: query heads, and key heads, times their size.
    """

    name: str
    num_layers: int
    hidden_size: int
    layer_parameters: int
    embedding_parameters: int
    head_parameters: int
    q_size: int
    kv_size: int
    vocab_size: int
    max_position: int

    @property
    def total_parameters(self) -> int:
        """As held by a pipeline, where a shared matrix counts twice."""
        layers = self.num_layers * self.layer_parameters
        return layers + self.embedding_parameters + self.head_parameters

    def kv_bytes(self, num_layers: int, dtype: str) -> int:
        """Keys and values of one token in so many layers."""
        return 2 * num_layers * self.kv_size * ITEM_BYTES[dtype]
