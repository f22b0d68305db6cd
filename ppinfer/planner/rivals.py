"""Schedules of other systems, to be simulated beside the engine's own.

Each differs from ``GenerateSchedule`` in the one thing it is named for, so that the difference in
time is what that thing costs. A maker takes the books and the tuning of a pipeline; pass it to
``simulate(schedule=…)``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppinfer.messages import StepPlan
from ppinfer.planner.simulate import ScheduleMaker
from ppinfer.schedule.balance import Balance
from ppinfer.schedule.generate import EvenSpread, GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import STEPS_A_SLOT, MicroBatch
from ppinfer.schedule.tuning import Tuning


def equal_tokens(manager: MicroBatchManager, tuning: Tuning) -> GenerateSchedule:
    """Chunks of so many tokens, whatever their context and whoever decodes beside them."""
    return GenerateSchedule(manager, tuning.max_prefill_tokens, tuning)


def accidental_cohorts(manager: MicroBatchManager, tuning: Tuning) -> GenerateSchedule:
    """A request joins the micro-batch whose turn it is, as many as a step computes prompts, and
    stays there: so cohorts such as 7, 13, 2 and 10 come to decode together."""
    spread = EvenSpread(len(manager.slots))
    return GenerateSchedule(
        manager, tuning.max_prefill_tokens, spread, tuning.steps, _Places(manager)
    )


def fixed_cohorts(sizes: tuple[int, ...]) -> ScheduleMaker:
    """Micro-batches of so many sequences each, filled in their turn; nobody is moved."""

    def make(manager: MicroBatchManager, tuning: Tuning) -> GenerateSchedule:
        assert len(sizes) == len(manager.slots)
        places = _Places(manager, sizes)
        return GenerateSchedule(
            manager, tuning.max_prefill_tokens, EvenSpread(len(sizes)), tuning.steps, places
        )

    return make


def never_moved(manager: MicroBatchManager, tuning: Tuning) -> GenerateSchedule:
    """Requests join the lightest micro-batch, as in the engine's schedule, and stay there."""
    weight = tuning.steps.context_weight if tuning.steps is not None else 0.0
    spread = EvenSpread(len(manager.slots))
    return GenerateSchedule(
        manager, tuning.max_prefill_tokens, spread, tuning.steps, _Stay(manager, weight)
    )


class _Stay(Balance):
    """Whoever is in a slot stays there."""

    def even_out(self, total: int, in_use: int) -> None:
        pass


class _Places(_Stay):
    """So many in each slot, or any number."""

    def __init__(self, manager: MicroBatchManager, sizes: tuple[int, ...] | None = None) -> None:
        super().__init__(manager)
        self._sizes = sizes

    def has_place(self, slot: MicroBatch, newcomer: Sequence, total: int, in_use: int) -> bool:
        return self._sizes is None or len(slot.sequences) < self._sizes[slot.index]


def prompts_stay(
    manager: MicroBatchManager, tuning: Tuning, by_time: bool = True
) -> GenerateSchedule:
    """A prompt is computed in the steps of its own micro-batch alone, two of which are under way.

    Args:
        by_time: chunks of equal time, not of equal tokens.
    """
    steps = tuning.steps if by_time else None
    return GenerateSchedule(manager, tuning.max_prefill_tokens, _NothingLent(tuning), steps)


class _NothingLent:
    """The micro-batches of a tuning, and no step but theirs."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning

    def micro_batches_for(self, num_sequences: int) -> int:
        return self._tuning.micro_batches_for(num_sequences)

    def turns_for(self, micro_batches: int) -> int:
        return 0

    def threads_for(self, micro_batches: int) -> int:
        return self._tuning.threads_for(micro_batches)


class DrainingRounds:
    """The original ``generate`` schedule: as many requests as there is room for are dealt out to
    the micro-batches, whose prompts are computed before they decode; the next come in when the
    longest of these has ended.

    Kinder than the original, which left out micro-batches that did not make a full round, computed
    whole prompts at once, and went on with rows that had ended: what this costs is the draining.
    """

    def __init__(self, manager: MicroBatchManager, tuning: Tuning) -> None:
        self._manager = manager
        self._max_prefill_tokens = tuning.max_prefill_tokens
        self._due = [0] * len(manager.slots)  # requests that each slot is still to take in
        self._last = -1

    def next_plan(self) -> StepPlan | None:
        manager = self._manager
        slots = manager.slots
        if not manager.num_running:
            each, more = divmod(manager.num_admissible(), len(slots))
            self._due = [each + (index < more) for index in range(len(slots))]
        turn = self._last + 1
        for slot in (slots[(turn + index) % len(slots)] for index in range(len(slots))):
            if slot.in_flight == STEPS_A_SLOT:
                if slot.has_work or self._due[slot.index]:
                    return None
            elif work := self._prompts(slot) or self._next_tokens(slot):
                self._last = slot.index
                return manager.launch(slot, work)
        return None

    def _prompts(self, slot: MicroBatch) -> list[tuple[Sequence, int]]:
        work, left = [], self._max_prefill_tokens
        for seq in self._prompts_of(slot):
            count = min(left, seq.num_unplanned)
            if self._manager.make_room(seq, count):
                work.append((seq, count))
                left -= count
            if not left:
                break
        return [(seq, count) for seq, count in work if seq.slot == slot.index]

    def _prompts_of(self, slot: MicroBatch) -> Iterator[Sequence]:
        """Those in the slot, then those that it takes in for as long as it is asked."""
        yield from [seq for seq in slot.sequences if seq.num_planned < seq.num_known]
        while self._due[slot.index] and (newcomer := self._manager.admit(slot)) is not None:
            self._due[slot.index] -= 1
            yield newcomer
        self._due[slot.index] = 0  # who does not fit after all comes in the next round

    def _next_tokens(self, slot: MicroBatch) -> list[tuple[Sequence, int]]:
        work = [
            (seq, count)
            for seq in list(slot.sequences)
            if seq.slot == slot.index
            and (count := seq.num_unplanned)
            and self._manager.make_room(seq, count)
        ]
        return [(seq, count) for seq, count in work if seq.slot == slot.index]
