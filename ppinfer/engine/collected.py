"""Spans on their way from the stages to one reader."""

from __future__ import annotations

import msgspec

from ppinfer.engine.rounds import Round
from ppinfer.messages import StageTrace
from ppinfer.trace.clock import MOST_SPANS, SPAN_BYTES, Recording
from ppinfer.trace.model import StepFacts


class Collected:
    """What the stages handed over since ``begin``: their spans, and what each step was.

    Attributes:
        shifts: for each stage, what to add to its times to make them the driver's, and by how much
            that may err.
    """

    def __init__(self, num_stages: int) -> None:
        self.has_begun = False
        self.shifts: list[tuple[int, int]] = []
        self._num_stages = num_stages
        self._clear()

    def _clear(self) -> None:
        self.parts: list[list[StageTrace]] = [[] for _ in range(self._num_stages)]
        self.steps: dict[int, StepFacts] = {}
        self._room = [MOST_SPANS * SPAN_BYTES] * self._num_stages

    def begin(self, first: Round[StageTrace]) -> None:
        """What ``first`` brought was recorded before, for somebody else."""
        self.has_begun = True
        self.shifts = [
            shift(first.asked, first.answers[stage].now, first.heard[stage])
            for stage in range(self._num_stages)
        ]

    def add(self, found: Round[StageTrace]) -> None:
        """Past the limit, spans are only counted."""
        for stage, answer in found.answers.items():
            size = len(answer.spans)
            if size > self._room[stage]:
                self._room[stage] = 0
                dropped = answer.dropped + size // SPAN_BYTES
                answer = msgspec.structs.replace(answer, spans=b"", dropped=dropped)
            else:
                self._room[stage] -= size
            self.parts[stage].append(answer)

    def planned(self, step_id: int, facts: StepFacts) -> None:
        if len(self.steps) < MOST_SPANS:
            self.steps[step_id] = facts

    def take(self) -> tuple[list[list[StageTrace]], dict[int, StepFacts]]:
        """Parts by stage, and steps; they are forgotten here."""
        taken = self.parts, self.steps
        self._clear()
        return taken

    def recording(self, stage: int) -> Recording:
        """All of a stage's parts as one: each begins where the one before ended."""
        parts = self.parts[stage]
        packed = b"".join([part.spans for part in parts])
        return Recording(parts[0].start, packed, sum([part.dropped for part in parts]))


def shift(asked: int, told: int, heard: int) -> tuple[int, int]:
    """Of a clock that said ``told`` between two readings of ours; none if it may be the same."""
    if asked <= told <= heard:
        return 0, 0
    return (asked + heard) // 2 - told, (heard - asked) // 2
