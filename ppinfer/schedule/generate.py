"""The order of work on the pipeline: whose step comes next, and what is in it.

The slots take turns. A slot whose step is in flight is passed over, and no slot waits for another,
so the pipeline does not drain between rounds or when requests come and go. The same schedule serves
a static batch (all requests known at the start) and a stream of them.

Equal slots make equal steps, and equal steps leave no bubbles. So when a slot's turn comes, it
takes waiting requests up to its even share of all sequences that run or could run now, and what it
has above that share it gives to the smallest slots. Only the membership changes: stages know
sequences, and never see slots.
"""

from __future__ import annotations

from ppinfer.messages import StepPlan
from ppinfer.schedule.micro_batch import MicroBatch, MicroBatchManager
from ppinfer.schedule.sequence import Sequence


class GenerateSchedule:
    """Plans steps for the sequences of a ``MicroBatchManager``.

    ``max_prefill_tokens`` is the most prompt tokens that one step computes: several prompts may
    share them, and a longer prompt goes in chunks. Decoding sequences get their token in every step
    of their slot, so no prompt holds them up for more than that.

    Requests are admitted strictly in order, each only when it gets tokens in the same step. One
    that does not fit in memory yet holds up those behind it, so it is never overtaken for good.
    """

    def __init__(self, manager: MicroBatchManager, max_prefill_tokens: int) -> None:
        assert max_prefill_tokens >= 1
        self._manager = manager
        self._max_prefill_tokens = max_prefill_tokens
        self._last = -1  # the slot that was planned last

    def next_plan(self) -> StepPlan | None:
        """Plan the next step and put it in flight; ``None`` if no slot can have one now."""
        for slot in self._from(self._last + 1):
            if slot.in_flight is None and (work := self._work(slot)):
                self._last = slot.index
                return self._manager.launch(slot, work)
        return None

    def _from(self, index: int) -> tuple[MicroBatch, ...]:
        """All slots in the order of their turns, beginning with slot ``index``."""
        slots = self._manager.slots
        index %= len(slots)
        return slots[index:] + slots[:index]

    def _work(self, slot: MicroBatch) -> list[tuple[Sequence, int]]:
        """Who takes part in the slot's next step, and with how many tokens."""
        share = self._share(slot)
        while len(slot.sequences) > share:
            self._give(slot)
        work: list[tuple[Sequence, int]] = []
        budget = self._max_prefill_tokens
        for seq in slot.sequences:
            count = seq.num_unplanned
            if seq.is_prefilling:
                count = min(count, budget)
                budget -= count
            if count:
                work.append((seq, count))
        while budget and len(slot.sequences) < share:
            newcomer = self._manager.admit(slot)
            if newcomer is None:
                break
            count = min(newcomer.num_unplanned, budget)
            budget -= count
            work.append((newcomer, count))
        return work

    def _share(self, slot: MicroBatch) -> int:
        """How many sequences the slot should hold: its part of all, to within one.

        Where the division leaves a remainder, that many slots hold one more. So while a request
        fits in memory and a place is free, some slot is below its share, an empty one always.
        """
        manager = self._manager
        slots, size = manager.slots, manager.micro_batch_size
        places = len(slots) * size - manager.num_running
        total = manager.num_running + manager.num_admissible(places)
        share, remainder = divmod(total, len(slots))
        if remainder:
            larger = sum(len(other.sequences) > share for other in slots if other is not slot)
            share += larger < remainder
        return share

    def _give(self, slot: MicroBatch) -> None:
        """Give a sequence to the smallest slot; of equal ones to that whose turn is nearest.

        It is taken from the front and joins at the back, so the one that was moved last is the last
        to be moved again.
        """
        others = self._from(slot.index + 1)
        smallest = min(others, key=lambda other: len(other.sequences))
        assert len(smallest.sequences) <= len(slot.sequences) - 2
        self._manager.move(slot, smallest)
