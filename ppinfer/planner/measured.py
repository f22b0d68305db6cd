"""How long a step takes on devices that were measured: from the tables that stages make."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppinfer.messages import StepCosts
from ppinfer.planner.correction import NONE, Correction, at
from ppinfer.planner.cost import StepSeconds
from ppinfer.planner.work import StepWork
from ppinfer.schedule.pace import Curve
from ppinfer.schedule.partition import StageRange
from ppinfer.schedule.step_model import StepModel


class _Table:
    """One stage's costs, ready to be looked up."""

    def __init__(self, costs: StepCosts) -> None:
        self.threads = costs.threads
        self.layer = StepModel.fit(costs, 1)
        self.embed, self.prepare = Curve(costs.embed), Curve(costs.prepare)


@dataclass(frozen=True)
class MeasuredCost:
    """A stage of some layers of a model with ``num_layers``.

    Args:
        together: measured while the stages of a host worked at the same time.
        alone: measured by one stage on all cores, or ``None`` where stages do not share them.
    """

    layers: StageRange
    num_layers: int
    together: StepCosts
    alone: StepCosts | None = None
    correction: Correction = NONE
    _tables: tuple[_Table, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        both = (self.together,) if self.alone is None else (self.together, self.alone)
        object.__setattr__(self, "_tables", tuple(map(_Table, both)))

    def step(self, work: StepWork, threads: int) -> StepSeconds:
        first, last = self.layers
        table, correction = self._table(threads), self.correction
        model = table.layer
        layer = (
            model.rows.at(work.tokens)
            + model.decode_context * work.decode_context
            + model.prefill_context * work.prompt_pairs
        )
        compute = (last - first) * layer
        if first == 0:
            compute += table.embed.at(work.tokens)
        is_decode = work.tokens == work.sequences
        sample = 0.0
        if last == self.num_layers and work.samples:
            sample = model.head.at(work.samples) * at(correction.sample, work.samples)
        return StepSeconds(
            prepare=table.prepare.at(work.sequences) + correction.prepare,
            compute=compute
            * (at(correction.decode, work.sequences) if is_decode else correction.prefill),
            sample=sample,
            send=correction.send,
        )

    def _table(self, threads: int) -> _Table:
        """That of so many threads; where the plan leaves it open, each stage has its share."""
        return next(
            (table for table in reversed(self._tables) if table.threads == threads), self._tables[0]
        )
