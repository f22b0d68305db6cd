"""A trace: what every stage and the driver did in a run, and what each step was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

WORK = ("compute", "sample", "prepare")
WAITS = ("wait_plan", "wait_input", "send")
"""Activities of a stage: those that are its work, and those in which it waits for others."""

DRIVER_WORK = ("read", "commit", "admit", "plan", "deliver")


class Span(NamedTuple):
    """Nanoseconds from the beginning of the trace; ``step`` is -1 where it belongs to none."""

    activity: str
    step: int
    start: int
    end: int


@dataclass(slots=True)
class Lane:
    """Spans in order, without gaps; ``dropped`` counts those that came after a full recording.

    ``clock_error`` is the most, in nanoseconds, by which the lane may be shifted against the
    driver's: nothing on one host, where all read the same clock.
    """

    name: str
    spans: list[Span] = field(default_factory=list)
    dropped: int = 0
    clock_error: int = 0


class StepFacts(NamedTuple):
    """What a plan held. ``decodes`` are sequences with one token past their first position: that
    is a decoding sequence, or the last token of a prompt, which is the same work."""

    slot: int
    tokens: int
    sequences: int
    decodes: int

    @property
    def is_decode(self) -> bool:
        return self.decodes == self.sequences

    @property
    def words(self) -> str:
        """Such as ``decode 16``, ``prefill 512`` (tokens), ``prefill 500 + decode 12``."""
        prefill = self.tokens - self.decodes
        parts = [f"prefill {prefill}"] if prefill else []
        parts += [f"decode {self.decodes}"] if self.decodes else []
        return " + ".join(parts) or "nothing"


@dataclass(slots=True)
class Trace:
    """``stages`` in pipeline order; ``info`` says what ran: model, dtype and the like."""

    stages: list[Lane]
    driver: Lane
    steps: dict[int, StepFacts] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)

    @property
    def lanes(self) -> list[Lane]:
        """The driver's and the stages'."""
        return [self.driver, *self.stages]

    @property
    def title(self) -> str:
        """What ran, and in how many micro-batches."""
        return ", ".join([*self.info.values(), counted(len(self.slots), "micro-batch", "es")])

    @property
    def slots(self) -> list[int]:
        """Those that had steps."""
        return sorted({facts.slot for facts in self.steps.values()})


def counted(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else ending}"


def slot_letter(slot: int) -> str:
    """Micro-batch slots are shown as letters: A, B, …, Z, A1, B1, …"""
    turn, place = divmod(slot, 26)
    return chr(ord("A") + place) + (str(turn) if turn else "")
