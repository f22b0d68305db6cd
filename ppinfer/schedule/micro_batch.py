"""Every sequence and token of the engine, and what each micro-batch holds.

``MicroBatchManager`` is the books: requests wait in one queue, are admitted to a lasting
micro-batch (a *slot*), get steps, and end. It decides when a sequence ends and, with ``KVMemory``,
whether one fits in memory. Which slot comes next, who joins it and how many tokens a step computes
is the schedule's business (``generate.py``). Nothing here knows text, tensors or stages.

Where memory runs out, the sequence that came last with the least priority gives its blocks back,
waits at its old place in the queue, and is computed again from its prompt and output so far: with
the same bits, so its tokens are the same. The first of all is never sent away, and fits alone; so
there is always one that comes to its end.

Plans run ahead of results: while a step of a slot is on the pipeline the next one may follow, with
``PENDING`` in place of tokens that are still to be drawn. So no stage waits for the driver. What
such a step draws for a sequence that turns out to have ended, or has started over, is dropped.

Blocks are released as soon as a sequence ends, even if steps of it are in flight: every stage works
through plans in order, so those steps write before the next owner does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator

import msgspec

from ppinfer.errors import StageError
from ppinfer.messages import (
    PENDING,
    NewSequence,
    PromptLogprobs,
    SampledToken,
    SequenceStep,
    StepPlan,
    StepResult,
)
from ppinfer.request import FinishReason, Request
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.memory import KVMemory
from ppinfer.schedule.queue import WaitingQueue
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import STEPS_A_SLOT, MicroBatch, Sums

# Shared by all plans, which nobody changes: a list a sequence and step would keep the garbage
# collector busy.
_LATEST = [PENDING]
_NO_BLOCKS: list[int] = []


class TokenUpdate(msgspec.Struct, frozen=True, gc=False):
    """A new token; ``finish_reason`` is set if the sequence ended with it.

    ``prompt`` comes once, with the first token or, where none was to be drawn, alone: all of the
    prompt's log-probabilities, if they were asked for.
    """

    seq_id: int
    sampled: SampledToken | None
    finish_reason: FinishReason | None
    prompt: list[PromptLogprobs] | None = None


class MicroBatchManager:
    """The one owner of all sequences and their KV blocks; see the module.

    Attributes:
        slots: the micro-batches, by index.
        max_sequences: most sequences that all slots hold together.
        pool: the KV blocks; ``pool.num_used`` are in use.
        memory: who holds which of them.
        queue: those that wait.
        membership: changes whenever a slot gains or loses a sequence.
        num_preemptions: how often a sequence had to give its blocks back.
    """

    def __init__(
        self,
        num_micro_batches: int,
        max_sequences: int,
        pool: BlockPool,
        prefix_caching: bool = True,
    ) -> None:
        assert num_micro_batches >= 1
        assert max_sequences >= 1
        self.slots = tuple(MicroBatch(index) for index in range(num_micro_batches))
        self.max_sequences = max_sequences
        self.pool = pool
        self.memory = KVMemory(pool, prefix_caching)
        self.queue = WaitingQueue(self.memory)
        self.membership = 0
        self.num_preemptions = 0
        self._sequences: dict[int, Sequence] = {}  # waiting and running
        self._in_flight: deque[StepPlan] = deque()  # oldest first
        self._ended: list[int] = []  # since the last plan
        self._next_step = 0
        self._num_arrived = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._sequences)

    @property
    def sequences(self) -> Collection[Sequence]:
        """Those that wait and those that run, in the order they came."""
        return self._sequences.values()

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    @property
    def num_running(self) -> int:
        return len(self._sequences) - len(self.queue)

    @property
    def num_in_flight(self) -> int:
        """Steps whose results are still to come."""
        return len(self._in_flight)

    @property
    def round_length(self) -> int:
        """Steps until a slot's turn comes again, as slots are in flight now."""
        return sum(slot.in_flight > 0 for slot in self.slots)

    @property
    def first_waiting(self) -> Sequence | None:
        return self.queue.first

    def running(self) -> Iterator[Sequence]:
        """Every sequence that a slot holds."""
        for slot in self.slots:
            yield from slot.sequences

    def sums(self) -> Sums:
        """Of every sequence that a slot holds."""
        return Sums(*map(sum, zip(*[slot.sums for slot in self.slots], strict=True)))

    # ------------------------------------------------------------ queue and slots

    def add(self, request: Request) -> None:
        """Put a request in the queue, behind those that came before with the same priority.

        Raises:
            CapacityError: it would not fit in the KV cache even alone.
        """
        prompt = request.prompt_token_ids
        assert prompt, "a prompt has at least one token"
        assert request.seq_id not in self._sequences, f"sequence {request.seq_id} exists already"
        seq = Sequence(request, self.memory.most_blocks(request), self._num_arrived, list(prompt))
        self._num_arrived += 1
        self._sequences[request.seq_id] = seq
        self.queue.add(seq)

    def num_admissible(self) -> int:
        """How many of the first waiting requests could run beside those that do.

        More may fit in memory than are counted: only the first one's cached prefix is looked up.
        """
        most, first = self.max_sequences - self.num_running, self.queue.first
        if not most or first is None or self.memory.fit(first) is None:
            return 0
        return max(1, self.queue.num_fitting(most))

    def admit(self, slot: MicroBatch) -> Sequence | None:
        """Move the first waiting request into a slot, if one waits and fits in memory.

        It starts behind the longest cached beginning. The next plan must include it.
        """
        first = self.queue.first
        if first is None or (prefix := self.memory.fit(first)) is None:
            return None
        seq = self.queue.pop()
        self.memory.enter(seq, prefix)
        seq.enter(slot.index, len(prefix) * self.pool.block_size)
        slot.add(seq)
        self.membership += 1
        return seq

    def move(self, seq: Sequence, target: MicroBatch, apart: int = 0) -> None:
        """Put a sequence at the end of another slot, for the steps to be planned.

        While a token of it is on its way, its next step should be so many after its last one.
        """
        assert seq.slot is not None
        self.slots[seq.slot].remove(seq)
        seq.slot = target.index
        seq.not_before = seq.last_step + apart
        target.add(seq)

    def make_room(self, seq: Sequence, count: int) -> bool:
        """Take the blocks for a running sequence's next ``count`` tokens.

        Others that rank behind it are sent back to the queue as far as need be. Where it is the
        last itself, it goes, and the answer is no.
        """
        missing = self.memory.missing(seq, seq.num_planned + count)
        if missing <= 0:
            return True
        while missing > self.pool.num_free:
            last = max(self.running(), key=lambda seq: seq.rank)
            self._preempt(last)
            if last is seq:
                return False
        self.memory.grow(seq, missing)
        return True

    def finish(self, seq_id: int, reason: FinishReason) -> Sequence | None:
        """End a sequence for a cause outside its tokens: a stop string, or the caller's wish.

        Returns the sequence, or ``None`` if it has ended already. What its step in flight draws is
        dropped at ``commit``.
        """
        seq = self._sequences.get(seq_id)
        if seq is not None:
            self._end(seq, reason)
        return seq

    # ------------------------------------------------------------ steps

    def rests(self, seq: Sequence) -> bool:
        """Whether its slot would wait for what it was moved away from."""
        return seq.not_before > self._next_step and seq.num_pending > 0

    def launch(
        self, slot: MicroBatch, work: Iterable[tuple[Sequence, int]], threads: int = 0
    ) -> StepPlan:
        """Put a step of a slot in flight: for each sequence, that many of its unplanned tokens.

        A sequence of another slot lets a round pass before its next step, as one that moved does.
        """
        assert slot.in_flight < STEPS_A_SLOT
        block_size, memory = self.pool.block_size, self.memory
        new: list[NewSequence] = []
        steps: list[SequenceStep] = []
        for seq, count in work:
            tokens, blocks = seq.tokens, seq.blocks
            start = seq.num_planned
            end = start + count
            drawn = len(tokens) + seq.num_pending
            assert start < end <= drawn
            assert end <= len(tokens) or count == 1, "of the tokens to be drawn, one at a time"
            if end > len(blocks) * block_size:
                memory.grow(seq, memory.missing(seq, end))
            if not seq.announced:
                seq.announced = True
                new.append(seq.introduction())
            new_blocks = _NO_BLOCKS
            if seq.num_told < len(blocks):
                new_blocks = blocks[seq.num_told :]
                seq.num_told = len(blocks)
            steps.append(
                SequenceStep(
                    seq.seq_id,
                    start,
                    tokens[start:end] if end <= len(tokens) else _LATEST,
                    new_blocks,
                    draws := end == drawn and not seq.ends_with_prompt,
                    seq.scores_in(start, end) if start < seq.prompt_len else 0,
                    seq.mask if draws else b"",
                )
            )
            seq.num_planned = end
            seq.num_pending += draws
            seq.last_step = self._next_step
            if seq.slot != slot.index:
                self._lent_to(seq)
        plan = StepPlan(self._next_step, slot.index, self._ended, new, steps, threads)
        self._next_step += 1
        self._ended = []
        slot.in_flight += 1
        slot.changed()
        self._in_flight.append(plan)
        return plan

    def commit(self, result: StepResult) -> list[TokenUpdate]:
        """Take in the oldest step's result: append tokens, end sequences, make blocks known.

        Returns one update a new token, and one a prompt that ended without, in the plan's order;
        sequences that ended meanwhile have none.

        Raises:
            StageError: the result is not the oldest step's, or not for its sequences and tokens.
        """
        oldest = self._in_flight[0] if self._in_flight else None
        if oldest is None or result.step_id != oldest.step_id:
            due = "none is in flight" if oldest is None else f"{oldest.step_id} is due"
            raise StageError(f"The last stage answered step {result.step_id}, but {due}.")
        wanted = oldest.sampled
        drawn = [sampled.seq_id for sampled in result.tokens]
        if drawn != wanted:
            raise StageError(
                f"The last stage answered step {result.step_id} with tokens of sequences {drawn}, "
                f"but the plan asked for {wanted}."
            )
        scored = [(prompt.seq_id, len(prompt.logprobs)) for prompt in result.prompts]
        if scored != oldest.scored:
            raise StageError(
                f"The last stage answered step {result.step_id} with log-probabilities of other "
                "prompt tokens than the plan asked for."
            )
        self._in_flight.popleft()
        self.slots[oldest.slot].in_flight -= 1
        updates: list[TokenUpdate] = []
        tokens, prompts = iter(result.tokens), iter(result.prompts)
        sequences, block_size = self._sequences, self.pool.block_size
        for step in oldest.steps:
            sampled = next(tokens) if step.sample else None
            prompt = next(prompts) if step.scores else None
            seq = sequences.get(step.seq_id)
            if seq is None or result.step_id < seq.first_step:
                continue
            count = len(step.tokens)
            seq.num_computed = computed = seq.num_computed + count
            if computed % block_size < count:  # a block is full now
                self.memory.computed(seq, computed - count, computed)
            if prompt is not None:
                seq.add_scores(computed, prompt)
            reason: FinishReason | None = None
            if sampled is not None:
                assert seq.slot is not None
                reason = seq.take(sampled.token)
                self.slots[seq.slot].changed()
            elif seq.ends_with_prompt and computed == seq.prompt_len:
                reason = "length"
            else:
                continue
            if reason is not None:
                self._end(seq, reason)
            updates.append(TokenUpdate(step.seq_id, sampled, reason, seq.take_scores()))
        return updates

    # ------------------------------------------------------------ inside

    def _lent_to(self, seq: Sequence) -> None:
        """A sequence had a part in a step that was not its own slot's."""
        assert seq.slot is not None
        self.slots[seq.slot].changed()
        seq.not_before = seq.last_step + self.round_length

    def _preempt(self, seq: Sequence) -> None:
        """Send a running sequence back to the queue, to start over later."""
        self._withdraw(seq)
        seq.start_over(self._next_step)
        self.queue.add(seq)
        self.num_preemptions += 1

    def _end(self, seq: Sequence, reason: FinishReason) -> None:
        """Forget a sequence, at once and wherever it is; the next plan tells the stages."""
        del self._sequences[seq.seq_id]
        if seq.slot is None:
            self.queue.remove(seq)
        else:
            self._withdraw(seq)
            if reason != "abort" and not seq.ends_with_prompt:
                self.memory.lengths.add(seq.num_output)
        seq.slot = None
        seq.finish_reason = reason

    def _withdraw(self, seq: Sequence) -> None:
        """Take a running sequence out of its slot and memory."""
        assert seq.slot is not None
        self.slots[seq.slot].remove(seq)
        self.memory.leave(seq)
        if seq.announced:
            self._ended.append(seq.seq_id)
        self.membership += 1
