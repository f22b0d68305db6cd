"""Which sequence holds which KV blocks, how many more are promised, and who may come in.

A sequence is let in if there is room for its tokens so far and for as much growth as most outputs
have had lately, beside what is promised to those that run. Blocks are taken only as steps need
them; until then they are promised, and count as free. So memory is not held for limits that hardly
any answer reaches. Where one grows past what it was promised and nothing is free, another must give
way (``MicroBatchManager.make_room``).
"""

from __future__ import annotations

from collections import deque

from ppinfer.errors import CapacityError
from ppinfer.request import Request
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.sequence import Sequence

FIRST_GUESS = 256
"""Tokens of an output, before any has ended."""

_WINDOW = 64
_QUANTILE = 0.9


class OutputLengths:
    """How long outputs have been lately, as a guess at how long the next one will be.

    Attributes:
        expected: most outputs have no more tokens.
        least: tokens that even a sequence past that is promised when it comes in.
    """

    least = 32

    def __init__(self) -> None:
        self._lately: deque[int] = deque(maxlen=_WINDOW)
        self.expected = FIRST_GUESS

    def add(self, length: int) -> None:
        self._lately.append(length)
        ordered = sorted(self._lately)
        self.expected = ordered[int(_QUANTILE * len(ordered))]


class KVMemory:
    """
    Attributes:
        queried_tokens: tokens of prompts that came in, where prefixes are cached.
        cached_tokens: of these, tokens that were found.
    """

    def __init__(self, pool: BlockPool, prefix_caching: bool) -> None:
        self.pool = pool
        self.lengths = OutputLengths()
        self.queried_tokens = 0
        self.cached_tokens = 0
        self._prefix_caching = prefix_caching
        self._promised = 0  # blocks that running sequences may still take

    @property
    def room(self) -> int:
        """Free blocks that nobody was promised; less than none where some outgrew their promise."""
        return self.pool.num_free - self._promised

    def most_blocks(self, request: Request) -> int:
        """Blocks that a request holds at its longest.

        Raises:
            CapacityError: it would not fit even alone.
        """
        prompt_len, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
        # The last token is drawn but never computed, so it needs no room.
        most = self.pool.blocks_for(prompt_len + max(max_tokens, 1) - 1)
        if most > self.pool.num_blocks:
            raise CapacityError(
                f"A prompt of {prompt_len} tokens with max_tokens {max_tokens} needs {most} "
                f"KV cache blocks of {self.pool.block_size} tokens, but the whole cache has "
                f"{self.pool.num_blocks}; shorten the prompt, lower max_tokens, or raise "
                "kv_cache_memory."
            )
        return most

    def wanted(self, seq: Sequence) -> int:
        """Blocks for a sequence's tokens so far and the growth that is to be expected."""
        growth = max(self.lengths.expected - seq.num_output, self.lengths.least)
        return min(seq.max_blocks, self.pool.blocks_for(seq.num_tokens + growth))

    def fit(self, seq: Sequence) -> list[int] | None:
        """Blocks of the cached beginning of a waiting sequence; ``None`` if it does not fit now.

        At least one token is left to compute, since there must be logits to draw from. A block of
        the beginning that is free will be free no longer, so only blocks in use save room. Where a
        prompt is scored, what it begins with must be computed all the same.
        """
        prefix: list[int] = []
        if self._prefix_caching and not seq.needs_scores:
            num_blocks = (seq.num_tokens - 1) // self.pool.block_size
            prefix = self.pool.lookup(seq.hashes(0, num_blocks, self.pool.block_size))
        needed = self.wanted(seq) - len(prefix) + self.pool.num_free_among(prefix)
        return prefix if needed <= self.room else None

    def enter(self, seq: Sequence, prefix: list[int]) -> None:
        """Let a sequence in that fits behind this cached beginning."""
        self.pool.share(prefix)
        seq.blocks = prefix
        seq.promised = self.wanted(seq)
        self._promised += seq.promised - len(prefix)
        is_new = not seq.first_step  # else it comes back
        if self._prefix_caching and is_new and not seq.needs_scores:
            self.queried_tokens += seq.num_tokens
            self.cached_tokens += len(prefix) * self.pool.block_size

    def missing(self, seq: Sequence, num_tokens: int) -> int:
        """Blocks that it lacks to hold so many tokens."""
        return self.pool.blocks_for(num_tokens) - len(seq.blocks)

    def grow(self, seq: Sequence, count: int) -> None:
        """Give it ``count`` blocks, which are free."""
        left = seq.promised - len(seq.blocks)
        seq.blocks += self.pool.allocate(count)
        self._promised -= min(max(left, 0), count)

    def leave(self, seq: Sequence) -> None:
        """Take all its blocks back; what they hold stays known until they are used again."""
        self._promised -= max(seq.promised - len(seq.blocks), 0)
        self.pool.release(seq.blocks)
        seq.blocks = []

    def computed(self, seq: Sequence, before: int, after: int) -> None:
        """Make known what blocks hold that are full now, with ``after`` of its tokens computed."""
        first, last = before // self.pool.block_size, after // self.pool.block_size
        if first == last or not self._prefix_caching:
            return
        contents = seq.hashes(first, last, self.pool.block_size)
        for block, content in zip(seq.blocks[first:last], contents, strict=True):
            self.pool.register(block, content)
