"""KV block ids: who holds which, and which hold the tokens of a known prefix.

A block is room for ``block_size`` tokens in the KV cache of every stage; the same id means the
same place on all of them, so the driver alone keeps the books. The pool knows ids, reference counts
and content hashes, and nothing about sequences.

A block without references is free. It keeps its content and its hash until it is handed out again,
so a later prompt that begins alike can take it back. Free blocks without known content are reused
first, the rest in the order in which they became free. (The paging is vLLM's, Kwon et al. 2023;
finding prefixes by a chain of block hashes too.)
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

ROOT = b""
"""The parent of a sequence's first block."""

DIGEST_BYTES = 16


def root_of(salt: str) -> bytes:
    """The parent of the first block where prefixes are shared only with the same salt."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest() if salt else ROOT


def hash_blocks(tokens: Sequence[int], block_size: int, parent: bytes = ROOT) -> list[bytes]:
    """Hashes of the full blocks of ``tokens``, each over its parent's hash and its own token ids.

    A hash therefore names a block's content and all that came before it. The chain goes on from
    any point: pass the last hash as ``parent`` and the tokens after that block.
    """
    data = array("q", tokens).tobytes()
    width = block_size * array("q").itemsize
    hashes = []
    for end in range(width, len(data) + 1, width):
        parent = blake2b(parent + data[end - width : end], digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes


class BlockPool:
    """``num_blocks`` block ids, 0 to ``num_blocks - 1``.

    Whoever allocates checks ``num_free`` first: asking for more is a bug, not an answer.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks >= 1
        assert block_size >= 1
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        # First those that hold nothing known, the latest in front; the others in order of release.
        self._free = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks without references, those that still hold a cached prefix among them."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many free blocks ``share(blocks)`` would consume."""
        return sum(not self._references[block] for block in blocks)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` free blocks; what they hold is forgotten.

        First come those that hold nothing known, and of them what was in use last: its memory is
        there already, and often still in a processor's cache. Then what became free first.
        """
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            content = self._hashes[block]
            if content is not None:
                self._hashes[block] = None
                del self._cached[content]
        return blocks

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks that hold the longest known beginning of a chain of hashes; takes nothing."""
        blocks = []
        for content in hashes:
            block = self._cached.get(content)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each of the blocks that ``lookup`` found, in use or free."""
        for block in blocks:
            assert self._hashes[block] is not None, f"block {block} holds no known content"
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def register(self, block: int, content: bytes) -> None:
        """Say that a block in use is full and what it holds.

        Where two sequences computed the same content at the same time, the first block stays the
        known one.
        """
        assert self._references[block], f"block {block} is free"
        if content not in self._cached:
            assert self._hashes[block] is None, f"block {block} already holds other content"
            self._cached[content] = block
            self._hashes[block] = content

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence, given in the sequence's order.

        They become free from the last to the first, so the tail of a prefix is reused before its
        head, without which the tail could not be found.
        """
        for block in reversed(blocks):
            assert self._references[block], f"block {block} is released twice"
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)
