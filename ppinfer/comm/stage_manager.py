"""Who am I in the pipeline: a value that is handed down, so that nothing reads a global rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineStageManager:
    """One stage's place. ``last_layer`` is exclusive; stages and layers count from 0."""

    stage: int
    num_stages: int
    first_layer: int
    last_layer: int

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1

    @property
    def previous(self) -> int | None:
        """The stage that hidden states come from; the first stage has none."""
        return None if self.is_first else self.stage - 1

    @property
    def next(self) -> int | None:
        """The stage that hidden states go to; the last stage has none."""
        return None if self.is_last else self.stage + 1

    @property
    def num_layers(self) -> int:
        return self.last_layer - self.first_layer
