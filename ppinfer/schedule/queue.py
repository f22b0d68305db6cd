"""Requests that wait, in the order in which they are let in.

How many of the first fit in memory is asked before every plan, and thousands may wait: so what the
first 1, 2, … need together is kept, as far as anyone asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate, islice

from ppinfer.schedule.memory import KVMemory
from ppinfer.schedule.sequence import Sequence


class WaitingQueue:
    """Sequences by rank. Nothing about them changes while they wait."""

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._sequences: list[Sequence] = []
        self._tokens, self._blocks = _Totals(), _Totals()
        self._expected = -1  # length of an output, as the blocks were counted

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def first(self) -> Sequence | None:
        return self._sequences[0] if self._sequences else None

    def add(self, seq: Sequence) -> None:
        index = self._index(seq)
        self._sequences.insert(index, seq)
        self._cut(index)

    def pop(self) -> Sequence:
        """Take the first out."""
        self._tokens.drop_first()
        self._blocks.drop_first()
        return self._sequences.pop(0)

    def remove(self, seq: Sequence) -> None:
        index = self._index(seq)
        assert self._sequences[index] is seq
        del self._sequences[index]
        self._cut(index)

    def num_tokens(self, count: int) -> int:
        """Tokens of the first ``count``, of which there are so many."""
        missing = islice(self._sequences, len(self._tokens), count)
        self._tokens.extend(seq.num_tokens for seq in missing)
        return self._tokens.of_first(count)

    def num_fitting(self, most: int) -> int:
        """How many of the first ``most`` find room in memory together."""
        memory, most = self._memory, min(most, len(self._sequences))
        if self._expected != memory.lengths.expected:
            self._expected = memory.lengths.expected
            self._blocks = _Totals()
        self._blocks.extend(map(memory.wanted, islice(self._sequences, len(self._blocks), most)))
        return self._blocks.num_within(memory.room, most)

    def _index(self, seq: Sequence) -> int:
        return bisect_left(self._sequences, seq.rank, key=lambda waiting: waiting.rank)

    def _cut(self, index: int) -> None:
        self._tokens.cut(index)
        self._blocks.cut(index)


class _Totals:
    """What the first 1, 2, … of a row of positive numbers come to."""

    def __init__(self) -> None:
        self._totals: list[int] = []
        self._gone = 0  # those that were dropped count in the totals still

    def __len__(self) -> int:
        return len(self._totals)

    def extend(self, numbers: Iterable[int]) -> None:
        last = self._totals[-1] if self._totals else self._gone
        totals = accumulate(numbers, initial=last)
        next(totals)
        self._totals.extend(totals)

    def drop_first(self) -> None:
        if self._totals:
            self._gone = self._totals.pop(0)

    def cut(self, length: int) -> None:
        """Forget all numbers after the first ``length``."""
        del self._totals[length:]

    def of_first(self, count: int) -> int:
        return self._totals[count - 1] - self._gone if count else 0

    def num_within(self, limit: int, most: int) -> int:
        """How many of the first ``most`` come to no more than ``limit``."""
        return bisect_right(self._totals, self._gone + limit, 0, most)
