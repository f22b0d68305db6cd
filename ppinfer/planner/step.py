"""A step under way through the stages."""

from __future__ import annotations

from dataclasses import dataclass

from ppinfer.planner.cost import StepSeconds


@dataclass(slots=True)
class Step:
    """
    Attributes:
        planned: when its plan is at the stages.
        gap: for how long nothing had been in flight when the driver planned it.
        waits_for: the step that draws tokens which the plan left open, or -1.
        parts: what it takes on each stage.
        rows: of the hidden states that stages send on.
        threads: that it computes with, where stages share cores.
    """

    id: int
    planned: float
    gap: float
    waits_for: int
    parts: list[StepSeconds]
    rows: int
    threads: int
