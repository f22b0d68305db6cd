"""A lasting micro-batch, which ``MicroBatchManager`` calls a slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ppinfer.schedule.sequence import Sequence

STEPS_A_SLOT = 2
"""Steps of one slot that may be in flight: one on the pipeline, and one that waits behind it."""


class MicroBatchState(Enum):
    PREFILL = "prefill"  # some prompt is not computed yet
    GENERATE = "generate"  # every sequence decodes
    DONE = "done"  # no sequences


class Sums(NamedTuple):
    """Of some sequences together.

    Attributes:
        size: how many they are.
        context: their tokens, or those that plans cover where these are more.
        decoding: how many of them are past what is computed like a prompt; of these:
        planned: tokens that plans cover.
        streams: how many somebody reads along with.
    """

    size: int
    context: int
    decoding: int
    planned: int
    streams: int

    @classmethod
    def of(cls, sequences: list[Sequence]) -> Sums:
        decoding = [seq for seq in sequences if seq.num_planned >= seq.num_known]
        return cls(
            len(sequences),
            sum([max(seq.num_planned, len(seq.tokens)) for seq in sequences]),
            len(decoding),
            sum([seq.num_planned for seq in decoding]),
            sum([seq.request.streamed for seq in decoding]),
        )


@dataclass(slots=True, eq=False)
class MicroBatch:
    """A slot: sequences in the order of their arrival in it, and how many steps are in flight."""

    index: int
    sequences: list[Sequence] = field(default_factory=list)
    in_flight: int = 0
    _sums: Sums | None = None

    def add(self, seq: Sequence) -> None:
        self.sequences.append(seq)
        self._sums = None

    def remove(self, seq: Sequence) -> None:
        self.sequences.remove(seq)
        self._sums = None

    def changed(self) -> None:
        """To be told where a sequence has other tokens, or others are planned."""
        self._sums = None

    @property
    def sums(self) -> Sums:
        if self._sums is None:
            self._sums = Sums.of(self.sequences)
        return self._sums

    @property
    def has_work(self) -> bool:
        """Whether any sequence has tokens that no plan covers."""
        return any(seq.num_unplanned for seq in self.sequences)

    @property
    def would_split(self) -> bool:
        """Whether a step now would part sequences with a constraint that had better go together:
        it would have nothing but the next tokens of some, while those of others are in flight."""
        some_in_flight = False
        for seq in self.sequences:
            if seq.num_unplanned > seq.is_constrained:
                return False
            some_in_flight |= seq.is_constrained and seq.num_pending > 0
        return some_in_flight

    @property
    def state(self) -> MicroBatchState:
        if not self.sequences:
            return MicroBatchState.DONE
        if any(seq.is_prefilling for seq in self.sequences):
            return MicroBatchState.PREFILL
        return MicroBatchState.GENERATE
