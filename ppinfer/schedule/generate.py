"""The order of work on the pipeline: whose step comes next, and what is in it.

The slots take turns. A slot may have two steps in flight, of which the second is planned before the
first one's tokens are known: so no stage waits for the driver, and the pipeline does not drain
between rounds or when requests come and go. A slot without work is passed over. The same schedule
serves a static batch (all requests known at the start) and a stream of them.

Equal slots make equal steps, and equal steps leave no bubbles. So when a slot's turn comes, it
takes waiting requests up to its even share of all sequences that run or could run now, and what any
slot has above that share goes to the smallest ones. Only the membership changes: stages know
sequences, and never see slots.

A sequence whose next draw depends on the driver (a grammar) has no step planned ahead. Where a slot
has only such sequences, it has one step in flight, so that they stay together.

How many slots are in use is a ``Spread``'s to say: a few sequences may be faster in one micro-batch
that every stage computes on all cores in turn than in several on a core each.
"""

from __future__ import annotations

from typing import Protocol

from ppinfer.messages import StepPlan
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import STEPS_A_SLOT, MicroBatch


class Spread(Protocol):
    """Over how many micro-batches sequences are spread."""

    def micro_batches_for(self, num_sequences: int) -> int:
        """At least 1, and not more than there are slots."""
        ...

    def threads_for(self, micro_batches: int) -> int:
        """CPU threads of each stage's step then; 0 leaves what the stage was started with."""
        ...


class EvenSpread:
    """Always over all slots; what tests and simulations without measurements use."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots

    def micro_batches_for(self, num_sequences: int) -> int:
        return self._num_slots

    def threads_for(self, micro_batches: int) -> int:
        return 0


class GenerateSchedule:
    """Plans steps for the sequences of a ``MicroBatchManager``.

    ``max_prefill_tokens`` is the most prompt tokens that one step computes: several prompts may
    share them, and a longer prompt goes in chunks. Decoding sequences get their token in every step
    of their slot, so no prompt holds them up for more than that.

    Requests are admitted strictly in order, each only when it gets tokens in the same step. One
    that does not fit in memory yet holds up those behind it, so it is never overtaken for good.
    """

    def __init__(
        self, manager: MicroBatchManager, max_prefill_tokens: int, spread: Spread | None = None
    ) -> None:
        assert max_prefill_tokens >= 1
        self._manager = manager
        self._spread = spread or EvenSpread(len(manager.slots))
        self._max_prefill_tokens = max_prefill_tokens
        self._last = -1  # the slot that was planned last

    def next_plan(self) -> StepPlan | None:
        """Plan the next step and put it in flight; ``None`` if no slot can have one now."""
        total = self._manager.num_running + self._manager.num_admissible()
        in_use = self._spread.micro_batches_for(total) if total else 0
        slots = self._from(self._last + 1)
        for slot in slots:
            self._even_out(slot, total, in_use)
        for slot in slots:
            if slot.in_flight == STEPS_A_SLOT:
                if slot.has_work:
                    return None  # to pass it over would put two steps of one slot side by side
            elif slot.in_flight and slot.would_split:
                continue
            elif work := self._work(slot, self._share(slot, total, in_use)):
                self._last = slot.index
                return self._manager.launch(slot, work, self._spread.threads_for(in_use))
        return None

    def _from(self, index: int) -> tuple[MicroBatch, ...]:
        """All slots in the order of their turns, beginning with slot ``index``."""
        slots = self._manager.slots
        index %= len(slots)
        return slots[index:] + slots[:index]

    def _work(self, slot: MicroBatch, share: int) -> list[tuple[Sequence, int]]:
        """Who takes part in the slot's next step, and with how many tokens."""
        work: list[tuple[Sequence, int]] = []
        budget = self._max_prefill_tokens
        for seq in slot.sequences:
            count = seq.num_unplanned
            if seq.num_planned < seq.prompt_len:
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

    def _share(self, slot: MicroBatch, total: int, in_use: int) -> int:
        """How many of ``total`` sequences the slot should hold: its part of all, to within one.

        Where the division leaves a remainder, that many slots hold one more. So while a request
        fits in memory and a place is free, some slot is below its share, an empty one always.
        """
        if slot.index >= in_use:
            return 0
        share, remainder = divmod(total, in_use)
        if remainder:
            slots = self._manager.slots[:in_use]
            larger = sum(len(other.sequences) > share for other in slots if other is not slot)
            share += larger < remainder
        return share

    def _even_out(self, slot: MicroBatch, total: int, in_use: int) -> None:
        """Give what is above the slot's share to the smallest slots, the next in turn first.

        A sequence is taken from the front and joins at the back, so the one that was moved last is
        the last to be moved again.
        """
        while len(slot.sequences) > self._share(slot, total, in_use):
            others = [other for other in self._from(slot.index + 1) if other.index < in_use]
            smallest = min(others, key=lambda other: len(other.sequences))
            assert slot.index >= in_use or len(smallest.sequences) <= len(slot.sequences) - 2
            self._manager.move(slot, smallest)
