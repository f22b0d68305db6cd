"""Which micro-batch a sequence belongs to, so that their steps take equally long.

A sequence weighs what its row costs in a step, and more with every token of context that attention
has to read. Slots of equal weight make equal steps, and equal steps leave no bubbles.

A moved sequence lets a round pass between its steps, as those do that stay: so the token that its
last step draws is there when it is to be computed, and its new slot does not wait for it.
"""

from __future__ import annotations

from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import MicroBatch

_GAIN = 0.5
"""What a move must take off the difference of two slots, in rows: less is not worth a bubble."""


class Balance:
    """``context_weight`` is what a token of context weighs, where a row weighs 1."""

    def __init__(self, manager: MicroBatchManager, context_weight: float = 0.0) -> None:
        self._manager = manager
        self._context_weight = context_weight
        self._seen = (-1, -1, -1)

    def weight(self, seq: Sequence) -> float:
        return 1.0 + self._context_weight * max(seq.num_planned, seq.num_tokens)

    def load(self, slot: MicroBatch) -> float:
        sums = slot.sums
        return sums.size + self._context_weight * sums.context

    def even_out(self, total: int, in_use: int) -> None:
        """Move sequences from heavy slots to light ones, and all of them out of slots past
        ``in_use``. Of equally light slots the one whose turn comes next after the giver's is first.

        ``total`` counts those that run or could run now: who waits fills a light slot before anyone
        moves. Slots only grow unequal when one comes or goes, so only then there is work to do.
        """
        state = (self._manager.membership, total, in_use)
        if state == self._seen:
            return
        self._seen = state
        slots = self._manager.slots
        apart = max(in_use, self._manager.round_length)
        for slot in slots[in_use:]:
            for seq in list(slot.sequences):
                self._manager.move(seq, self.lightest(in_use, slot), apart)
        if in_use == 1:
            return
        share = self._share(total, in_use)
        for _ in range(self._manager.num_running):  # each move makes them more equal
            heaviest = max(slots[:in_use], key=self.load)
            lightest = self.lightest(in_use, heaviest)
            best = self._best_move(heaviest, lightest)
            if best is None or self.load(heaviest) - self.weight(best) / 2 <= share:
                return
            self._manager.move(best, lightest, apart)

    def has_place(self, slot: MicroBatch, newcomer: Sequence, total: int, in_use: int) -> bool:
        """Whether a waiting sequence belongs in this slot.

        It does up to the slot's even share, and past that if no slot is lighter. So while there is
        anybody to admit, some slot in use has a place.
        """
        if slot.index >= in_use:
            return False
        if in_use == 1:
            return True
        load = self.load(slot)
        others = (other for other in self._manager.slots[:in_use] if other is not slot)
        return load + self.weight(newcomer) <= self._share(total, in_use) or all(
            load <= self.load(other) for other in others
        )

    def _share(self, total: int, in_use: int) -> float:
        """What each slot would hold if those that run or could run weighed the same everywhere."""
        manager = self._manager
        waiting = min(max(0, total - manager.num_running), manager.num_waiting)
        context = manager.sums().context + manager.queue.num_tokens(waiting)
        return (manager.num_running + waiting + self._context_weight * context) / in_use

    def lightest(self, in_use: int, giver: MicroBatch) -> MicroBatch:
        """Of the slots in use, and of equal ones that whose turn comes next."""
        slots, turn = self._manager.slots[:in_use], (giver.index + 1) % in_use
        turns = [*slots[turn:], *slots[:turn]]
        return min(turns, key=self.load)

    def _best_move(self, source: MicroBatch, target: MicroBatch) -> Sequence | None:
        """Whose move leaves the two most equal; ``None`` where it would not be worth it."""
        difference = self.load(source) - self.load(target)
        best = min(
            source.sequences, key=lambda seq: abs(difference - 2 * self.weight(seq)), default=None
        )
        if best is None or difference - abs(difference - 2 * self.weight(best)) < _GAIN:
            return None
        return best
