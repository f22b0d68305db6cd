"""Every sequence, token and KV block id of the engine, and what each micro-batch holds.

``MicroBatchManager`` is the books: requests wait in one queue, are admitted to a lasting
micro-batch (a *slot*), get steps, and end. It decides when a sequence ends and whether one fits in
memory. Which slot comes next, who joins it and how many tokens a step computes is the schedule's
business (``generate.py``). Nothing here knows text, tensors or stages.

Memory: a sequence is admitted only if the pool can hold it at its longest beside all others at
theirs, so a running sequence never runs out and is never thrown out. Blocks are taken only as steps
need them; until then they are promised, and count as free.

Plans run ahead of results: while a step of a slot is on the pipeline the next one may follow, with
``PENDING`` in place of tokens that are still to be drawn. So no stage waits for the driver. What
such a step draws for a sequence that turns out to have ended is dropped.

Blocks are released as soon as a sequence ends, even if steps of it are in flight: every stage works
through plans in order, so those steps write before the next owner does.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from itertools import accumulate, islice, takewhile

import msgspec

from ppinfer.errors import CapacityError, StageError
from ppinfer.messages import (
    PENDING,
    NewSequence,
    SampledToken,
    SequenceStep,
    StepPlan,
    StepResult,
)
from ppinfer.request import FinishReason, Request
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.sequence import Sequence
from ppinfer.schedule.slot import STEPS_A_SLOT, MicroBatch

# Shared by all plans, which nobody changes: a list a sequence and step would keep the garbage
# collector busy.
_LATEST = [PENDING]
_NO_BLOCKS: list[int] = []


class TokenUpdate(msgspec.Struct, frozen=True, gc=False):
    """A new token; ``finish_reason`` is set if the sequence ended with it."""

    sampled: SampledToken
    finish_reason: FinishReason | None

    @property
    def seq_id(self) -> int:
        return self.sampled.seq_id


class MicroBatchManager:
    """The one owner of all sequences and their KV blocks; see the module.

    Attributes:
        slots: the micro-batches, by index.
        max_sequences: most sequences that all slots hold together.
        pool: the KV blocks; ``pool.num_used`` are in use.
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
        self._prefix_caching = prefix_caching
        self._sequences: dict[int, Sequence] = {}  # waiting and running
        self._waiting: list[Sequence] = []  # by priority, those of the same in the order they came
        self._in_flight: deque[StepPlan] = deque()  # oldest first
        self._promised = 0  # blocks that running sequences may still take
        self._ended: list[int] = []  # since the last plan
        self._next_step = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self._sequences)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._sequences) - len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps whose results are still to come."""
        return len(self._in_flight)

    # ------------------------------------------------------------ queue and slots

    def add(self, request: Request) -> None:
        """Put a request in the queue, behind those that came before with the same priority.

        Raises:
            CapacityError: it would not fit in the KV cache even alone.
        """
        prompt = request.prompt_token_ids
        assert prompt, "a prompt has at least one token"
        assert request.seq_id not in self._sequences, f"sequence {request.seq_id} exists already"
        max_tokens = request.params.max_tokens
        # The last token is drawn but never computed, so it needs no room.
        max_blocks = self.pool.blocks_for(len(prompt) + max_tokens - 1)
        if max_blocks > self.pool.num_blocks:
            raise CapacityError(
                f"A prompt of {len(prompt)} tokens with max_tokens {max_tokens} needs {max_blocks} "
                f"KV cache blocks of {self.pool.block_size} tokens, but the whole cache has "
                f"{self.pool.num_blocks}; shorten the prompt, lower max_tokens, or raise "
                "kv_cache_memory."
            )
        seq = Sequence(request, max_blocks, list(prompt))
        self._sequences[request.seq_id] = seq
        insort(self._waiting, seq, key=lambda other: other.request.priority)

    def num_admissible(self) -> int:
        """How many of the first waiting requests could run beside those that do.

        More may fit in memory than are counted: only the first one's cached prefix is looked up.
        """
        most = self.max_sequences - self.num_running
        if not (most and self._waiting) or self._fit(self._waiting[0]) is None:
            return 0
        room = self.pool.num_free - self._promised
        needed = accumulate(seq.max_blocks for seq in islice(self._waiting, most))
        return max(1, sum(1 for _ in takewhile(lambda blocks: blocks <= room, needed)))

    def admit(self, slot: MicroBatch) -> Sequence | None:
        """Move the first waiting request into a slot, if one waits and fits in memory.

        It starts behind the longest cached prefix of its prompt. The next plan must include it.
        """
        if not self._waiting or (prefix := self._fit(self._waiting[0])) is None:
            return None
        seq = self._waiting.pop(0)
        self.pool.share(prefix)
        seq.blocks = prefix
        seq.num_planned = seq.num_computed = len(prefix) * self.pool.block_size
        seq.slot = slot.index
        slot.sequences.append(seq)
        self._promised += seq.max_blocks - len(prefix)
        return seq

    def move(self, source: MicroBatch, target: MicroBatch) -> None:
        """Give the first sequence of one slot to another, for the steps to be planned."""
        seq = source.sequences.pop(0)
        seq.slot = target.index
        target.sequences.append(seq)

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

    def launch(
        self, slot: MicroBatch, work: Iterable[tuple[Sequence, int]], threads: int = 0
    ) -> StepPlan:
        """Put a step of a slot in flight: for each sequence, that many of its unplanned tokens."""
        assert slot.in_flight < STEPS_A_SLOT
        block_size = self.pool.block_size
        new: list[NewSequence] = []
        steps: list[SequenceStep] = []
        for seq, count in work:
            tokens, blocks = seq.tokens, seq.blocks
            start = seq.num_planned
            end = start + count
            drawn = len(tokens) + seq.num_pending
            assert start < end <= drawn
            assert end <= len(tokens) or count == 1, "of the tokens to be drawn, one at a time"
            new_blocks = _NO_BLOCKS
            if end > len(blocks) * block_size:
                new_blocks = self.pool.allocate(self.pool.blocks_for(end) - len(blocks))
                blocks += new_blocks
                self._promised -= len(new_blocks)
            if not seq.announced:
                seq.announced = True
                new.append(seq.introduction())
                new_blocks = blocks.copy()  # its shared prefix too
            steps.append(
                SequenceStep(
                    seq.seq_id,
                    start,
                    tokens[start:end] if end <= len(tokens) else _LATEST,
                    new_blocks,
                    end == drawn,
                    seq.mask if end == drawn else b"",
                )
            )
            seq.num_planned = end
            seq.num_pending += end == drawn
        plan = StepPlan(self._next_step, slot.index, self._ended, new, steps, threads)
        self._next_step += 1
        self._ended = []
        slot.in_flight += 1
        self._in_flight.append(plan)
        return plan

    def commit(self, result: StepResult) -> list[TokenUpdate]:
        """Take in the oldest step's result: append tokens, end sequences, make blocks known.

        Returns one update a new token, in the plan's order; sequences that ended meanwhile have
        none.

        Raises:
            StageError: the result is not the oldest step's, or not for its sequences.
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
        self._in_flight.popleft()
        self.slots[oldest.slot].in_flight -= 1
        updates: list[TokenUpdate] = []
        tokens = iter(result.tokens)
        sequences, block_size = self._sequences, self.pool.block_size
        for step in oldest.steps:
            sampled = next(tokens) if step.sample else None
            seq = sequences.get(step.seq_id)
            if seq is None:
                continue
            count = len(step.tokens)
            seq.num_computed = computed = seq.num_computed + count
            if self._prefix_caching and computed % block_size < count:  # a block is full now
                self._register(seq, (computed - count) // block_size, computed // block_size)
            if sampled is not None:
                reason = seq.take(sampled.token)
                if reason is not None:
                    self._end(seq, reason)
                updates.append(TokenUpdate(sampled, reason))
        return updates

    # ------------------------------------------------------------ inside

    def _fit(self, seq: Sequence) -> list[int] | None:
        """Blocks of the cached prefix of a waiting sequence; ``None`` if it does not fit now.

        The prefix leaves at least one token to compute, since there must be logits to draw from.
        A block of it that is free will be free no longer, so only blocks in use save room.
        """
        prefix: list[int] = []
        if self._prefix_caching:
            num_blocks = (seq.prompt_len - 1) // self.pool.block_size
            prefix = self.pool.lookup(seq.hashes(0, num_blocks, self.pool.block_size))
        needed = seq.max_blocks - len(prefix) + self.pool.num_free_among(prefix)
        return prefix if needed <= self.pool.num_free - self._promised else None

    def _register(self, seq: Sequence, first: int, last: int) -> None:
        """Make known what its blocks from ``first`` to before ``last`` hold."""
        contents = seq.hashes(first, last, self.pool.block_size)
        for block, content in zip(seq.blocks[first:last], contents, strict=True):
            self.pool.register(block, content)

    def _end(self, seq: Sequence, reason: FinishReason) -> None:
        """Forget a sequence, at once and wherever it is; the next plan tells the stages."""
        del self._sequences[seq.seq_id]
        if seq.slot is None:
            self._waiting.remove(seq)
        else:
            self.slots[seq.slot].sequences.remove(seq)
            self._promised -= seq.max_blocks - len(seq.blocks)
            self.pool.release(seq.blocks)
            self._ended.append(seq.seq_id)
        seq.blocks = []
        seq.slot = None
        seq.finish_reason = reason
