"""What is asked of a plan, and what it says: each way to do it with its prediction."""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.config import EngineConfig
from ppinfer.errors import ConfigError
from ppinfer.planner.assemble import Assembled
from ppinfer.planner.cost import USUAL, Efficiency
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.shape import ModelShape
from ppinfer.planner.traffic import Arrival


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be planned.

    Attributes:
        context: tokens of the longest request, which bounds how many run at once.
        settings: of the engine, that the user has chosen already.
    """

    model: ModelShape
    dtype: str
    arrivals: tuple[Arrival, ...]
    efficiency: Efficiency = USUAL
    settings: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not self.arrivals:
            raise ConfigError("there are no requests to plan for.")
        if self.context > self.model.max_position:
            raise ConfigError(
                f"prompt and output have up to {self.context} tokens, but {self.model.name} was "
                f"made for at most {self.model.max_position}."
            )

    @property
    def context(self) -> int:
        return max(arrival.prompt + arrival.limit for arrival in self.arrivals)

    @property
    def typical_context(self) -> int:
        """Of a sequence half-way through its output, on average."""
        tokens = sum(arrival.prompt + arrival.new // 2 for arrival in self.arrivals)
        return tokens // len(self.arrivals)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to do it, and what it is predicted to give.

    Attributes:
        words: what it is, for people.
        copies: pipelines side by side; the rest describes one of them.
        outcome: of the copy with the most requests.
    """

    words: str
    copies: int
    assembled: Assembled
    config: EngineConfig
    outcome: Outcome

    @property
    def num_devices(self) -> int:
        return self.copies * len(self.assembled.devices)

    @property
    def throughput(self) -> float:
        """Output tokens a second of all copies."""
        return self.copies * self.outcome.throughput

    @property
    def kv_tokens(self) -> int:
        """That a copy's KV cache holds."""
        pipeline = self.assembled.pipeline
        return pipeline.num_blocks * pipeline.block_size


@dataclass(frozen=True)
class Unfit:
    """A way that cannot be gone, and why."""

    words: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """``pipeline`` is of all devices; ``others`` are its alternatives, best first."""

    question: Question
    pipeline: Choice
    others: tuple[Choice, ...]
    unfit: tuple[Unfit, ...]

    @property
    def best(self) -> Choice:
        return max((self.pipeline, *self.others), key=lambda choice: choice.throughput)
