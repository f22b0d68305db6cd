"""The order of work on the pipeline: whose step comes next, and what is in it.

The slots take turns. A slot may have two steps in flight, of which the second is planned before the
first one's tokens are known: so no stage waits for the driver, and the pipeline does not drain
between rounds or when requests come and go. A slot without work is passed over. The same schedule
serves a static batch (all requests known at the start) and a stream of them.

Where fewer slots hold sequences than steps could be under way, the turns that are left are *lent*
to prompts, whosever they are: chunks need not wait for tokens, so those of one prompt follow each
other through the stages.

Equal slots make equal steps, and equal steps leave no bubbles. So when a slot's turn comes, it
takes waiting requests up to its even share of all sequences that run or could run now, and heavy
slots give to light ones (``balance.py``). Only the membership changes: stages know sequences, and
never see slots. How much of the prompts a step computes, ``prefill.py`` says.

A sequence whose next draw depends on the driver (a grammar) has no step planned ahead. Where a slot
has only such sequences, it has one step in flight, so that they stay together.

How many slots are in use is a ``Spread``'s to say: a few sequences may be faster in one micro-batch
that every stage computes on all cores in turn than in several on a core each.
"""

from __future__ import annotations

from typing import Protocol

from ppinfer.messages import StepPlan
from ppinfer.schedule.balance import Balance
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.prefill import Budget, seconds_for_prompts
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import STEPS_A_SLOT, MicroBatch
from ppinfer.schedule.step_model import StepModel


class Spread(Protocol):
    """Over how many micro-batches sequences are spread."""

    def micro_batches_for(self, num_sequences: int) -> int:
        """At least 1, and not more than there are slots."""
        ...

    def turns_for(self, micro_batches: int) -> int:
        """Steps that may be under way then: where they are more, prompts use those left over."""
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

    def turns_for(self, micro_batches: int) -> int:
        return self._num_slots

    def threads_for(self, micro_batches: int) -> int:
        return 0


class GenerateSchedule:
    """Plans steps for the sequences of a ``MicroBatchManager``.

    ``max_prefill_tokens`` is the most prompt tokens that one step computes: several prompts may
    share them, and a longer prompt goes in chunks. Decoding sequences get their token in every step
    of their slot, so no prompt holds them up for more than that, and where ``steps`` predicts what
    a step takes, for less. Without it all tokens count the same.

    Requests are admitted strictly in order, each only when it gets tokens in the same step. One
    that does not fit in memory yet holds up those behind it, so it is never overtaken for good.
    """

    def __init__(
        self,
        manager: MicroBatchManager,
        max_prefill_tokens: int,
        spread: Spread | None = None,
        steps: StepModel | None = None,
        balance: Balance | None = None,
    ) -> None:
        assert max_prefill_tokens >= 1
        self._manager = manager
        self._spread = spread or EvenSpread(len(manager.slots))
        self._max_prefill_tokens = max_prefill_tokens
        self._steps = steps
        weight = steps.context_weight if steps is not None else 0.0
        self._balance = balance or Balance(manager, weight)
        self._last = -1  # the slot that was planned last
        self._preempted = 0  # how many were sent away, at the last look

    def next_plan(self) -> StepPlan | None:
        """Plan the next step and put it in flight; ``None`` if no slot can have one now."""
        manager = self._manager
        total = manager.num_running + manager.num_admissible()
        in_use = self._spread.micro_batches_for(total) if total else 0
        if manager.num_running:
            self._balance.even_out(total, in_use)
        prompts, lent = self._lent(total, in_use)
        for slot in self._from(self._last + 1):
            if slot.in_flight == STEPS_A_SLOT:
                if slot.has_work:
                    return None  # to pass it over would put two steps of one slot side by side
            elif slot.in_flight and slot.would_split:
                continue
            elif work := self._work(slot, total, in_use) or (
                self._lent_work(slot, prompts, total, in_use) if slot in lent else []
            ):
                self._last = slot.index
                return manager.launch(slot, work, self._spread.threads_for(in_use))
        return None

    def _from(self, index: int) -> tuple[MicroBatch, ...]:
        """All slots in the order of their turns, beginning with slot ``index``."""
        slots = self._manager.slots
        index %= len(slots)
        return slots[index:] + slots[:index]

    def _work(self, slot: MicroBatch, total: int, in_use: int) -> list[tuple[Sequence, int]]:
        """Who takes part in the slot's next step, and with how many tokens."""
        work: list[tuple[Sequence, int]] = []
        prompts: list[Sequence] = []
        for seq in list(slot.sequences):
            if seq.slot is None:  # it had to make room for one before it
                continue
            if seq.num_planned < seq.num_known:
                prompts.append(seq)
            elif (
                (count := seq.num_unplanned)
                and not self._manager.rests(seq)
                and self._manager.make_room(seq, count)
            ):
                work.append((seq, count))
        if self._manager.num_preemptions != self._preempted:
            work = [(seq, count) for seq, count in work if seq.slot is not None]
            prompts = [seq for seq in prompts if seq.slot is not None]
        if prompts or (self._manager.first_waiting is not None and slot.index < in_use):
            work += self._prompts(slot, prompts, len(work), total, in_use)
        return self._still_here(work)

    def _lent(self, total: int, in_use: int) -> tuple[list[Sequence], list[MicroBatch]]:
        """Prompts under way, and the empty slots whose turns are theirs and newcomers'."""
        manager = self._manager
        empty = [slot for slot in manager.slots if not slot.sequences]
        spare = self._spread.turns_for(in_use) - len(manager.slots) + len(empty) if empty else 0
        if spare <= 0 or not total:
            return [], []
        prompts = [seq for seq in manager.running() if seq.num_planned < seq.num_known]
        return prompts, empty[:spare] if prompts or manager.num_running < total else []

    def _lent_work(
        self, slot: MicroBatch, prompts: list[Sequence], total: int, in_use: int
    ) -> list[tuple[Sequence, int]]:
        """What prompts of other slots, and those that join them, make of an empty slot's turn."""
        prompts = [seq for seq in prompts if seq.slot is not None]
        return self._still_here(self._prompts(slot, prompts, 0, total, in_use))

    def _still_here(self, work: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Without those that have just made room for others."""
        if self._manager.num_preemptions == self._preempted:
            return work
        self._preempted = self._manager.num_preemptions
        return [(seq, count) for seq, count in work if seq.slot is not None]

    def _prompts(
        self, slot: MicroBatch, prompts: list[Sequence], rows: int, total: int, in_use: int
    ) -> list[tuple[Sequence, int]]:
        """What the step computes of these prompts and of those that join them now."""
        if not prompts and not self._takes_one(slot, 0, total, in_use):
            return []
        prompts.sort(key=lambda seq: seq.rank)
        budget = Budget(self._max_prefill_tokens, rows, self._seconds(total, in_use), self._steps)
        left = budget.give(prompts[0], part=0.5) if prompts else 0
        for seq in sorted(prompts[1:], key=lambda seq: seq.num_unplanned):
            budget.give(seq)
        while not budget.is_spent and self._takes_one(slot, left, total, in_use):
            newcomer = self._manager.admit(self._home(slot, in_use))
            if newcomer is None:
                break
            prompts.append(newcomer)
            budget.give(newcomer, least=1)
        if left:
            budget.give(prompts[0])
        return [
            (seq, count)
            for seq in prompts
            if (count := budget.shares.get(seq.seq_id, 0))
            and seq.slot is not None
            and self._manager.make_room(seq, count)
        ]

    def _takes_one(self, slot: MicroBatch, left: int, total: int, in_use: int) -> bool:
        """Whether the next request may join the step, whose oldest prompt has ``left`` to go.

        One that is no shorter than that comes after it.
        """
        manager = self._manager
        first = manager.first_waiting
        return (
            first is not None
            and (not left or first.num_tokens < left)
            and manager.num_running < total
            and self._balance.has_place(self._home(slot, in_use), first, total, in_use)
        )

    def _home(self, slot: MicroBatch, in_use: int) -> MicroBatch:
        """Where those belong that join a step of the slot."""
        return slot if slot.index < in_use else self._balance.lightest(in_use, slot)

    def _seconds(self, total: int, in_use: int) -> float:
        """Time for the prompts of a step."""
        if self._steps is None:
            return 0.0
        sums = self._manager.sums()
        return seconds_for_prompts(
            self._steps,
            self._max_prefill_tokens,
            sums.decoding / in_use,
            sums.planned / in_use,
            (total - sums.decoding) / sums.streams if sums.streams else None,
        )
