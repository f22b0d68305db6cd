from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from ppinfer.schedule.block_pool import DIGEST_BYTES, BlockPool, hash_blocks

token_lists = st.lists(st.integers(0, 2**40), max_size=30)


@given(token_lists, st.integers(1, 8))
def test_only_full_blocks_have_hashes(tokens, block_size):
    hashes = hash_blocks(tokens, block_size)
    assert len(hashes) == len(tokens) // block_size
    assert all(len(content) == DIGEST_BYTES for content in hashes)


@given(token_lists, st.integers(1, 8), st.integers(1, 5))
def test_a_chain_can_be_hashed_piece_by_piece(tokens, block_size, num_blocks):
    head = hash_blocks(tokens[: num_blocks * block_size], block_size)
    tail = hash_blocks(tokens[num_blocks * block_size :], block_size, head[-1] if head else b"")
    assert head + tail == hash_blocks(tokens, block_size)


def test_a_hash_names_all_that_came_before():
    one = hash_blocks([1, 2, 3, 4], 2)
    assert hash_blocks([9, 2, 3, 4], 2)[1] != one[1]
    assert hash_blocks([1, 2, 3, 4, 5], 2) == one
    assert hash_blocks([1, 2, 3, 5], 2)[0] == one[0]
    assert len({*hash_blocks([7] * 20, 2)}) == 10


def test_known_content_is_forgotten_in_the_order_it_became_free():
    pool = BlockPool(4, 16)
    assert pool.allocate(4) == [0, 1, 2, 3]
    for block in range(4):
        pool.register(block, bytes([block]))
    pool.release([2])
    pool.release([0, 3])
    assert pool.num_free == 3
    assert pool.num_used == 1
    assert pool.allocate(3) == [2, 3, 0]


def test_blocks_that_hold_nothing_are_reused_before_any_that_do_the_latest_first():
    """Memory that was in use is at hand; what no sequence ever used costs time to be had."""
    pool = BlockPool(6, 16)
    assert pool.allocate(4) == [0, 1, 2, 3]
    pool.register(0, b"known")
    pool.release([0])
    pool.release([1, 2])
    pool.release([3])
    assert pool.allocate(5) == [3, 1, 2, 4, 5]
    assert pool.lookup([b"known"]) == [0]
    assert pool.allocate(1) == [0]
    assert pool.lookup([b"known"]) == []


def test_the_tail_of_a_prefix_goes_before_its_head():
    pool = BlockPool(3, 2)
    hashes = hash_blocks([1, 2, 3, 4, 5, 6], 2)
    blocks = pool.allocate(3)
    for block, content in zip(blocks, hashes, strict=True):
        pool.register(block, content)
    pool.release(blocks)
    assert pool.num_free == 3
    assert pool.lookup(hashes) == blocks
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:2]
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:1]


def test_sharing_revives_free_blocks_and_outlives_the_first_owner():
    pool = BlockPool(3, 2)
    hashes = hash_blocks([1, 2, 3, 4], 2)
    blocks = pool.allocate(2)
    pool.register(blocks[0], hashes[0])
    pool.register(blocks[1], hashes[1])
    pool.share(pool.lookup(hashes[:1]))
    assert pool.num_free_among(blocks) == 0
    pool.release(blocks)
    assert pool.num_free == 2
    assert pool.num_free_among(blocks) == 1
    pool.share(pool.lookup(hashes))
    assert pool.num_free == 1
    pool.release(blocks)
    pool.release(blocks[:1])
    assert pool.num_free == 3


def test_the_first_of_two_equal_blocks_stays_the_known_one():
    pool = BlockPool(2, 2)
    content = hash_blocks([1, 2], 2)
    first, second = pool.allocate(2)
    pool.register(first, content[0])
    pool.register(second, content[0])
    assert pool.lookup(content) == [first]
    pool.release([second])
    pool.allocate(1)
    assert pool.lookup(content) == [first]


def test_lookup_stops_at_the_first_gap():
    pool = BlockPool(3, 2)
    hashes = hash_blocks([1, 2, 3, 4, 5, 6], 2)
    blocks = pool.allocate(3)
    pool.register(blocks[0], hashes[0])
    pool.register(blocks[2], hashes[2])
    assert pool.lookup(hashes) == [blocks[0]]


def test_misuse_is_caught():
    pool = BlockPool(2, 2)
    with pytest.raises(AssertionError, match="3 blocks wanted, 2 free"):
        pool.allocate(3)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="no known content"):
        pool.share([block])
    pool.register(block, b"a")
    with pytest.raises(AssertionError, match="other content"):
        pool.register(block, b"b")
    pool.release([block])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])
    with pytest.raises(AssertionError, match="is free"):
        pool.register(block, b"a")


class PoolMachine(RuleBasedStateMachine):
    """The pool against a plain model of it; sequences hold chains of blocks."""

    tables = Bundle("tables")
    SIZE = 8

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.SIZE, 1)
        self.references = dict.fromkeys(range(self.SIZE), 0)
        self.free = list(range(self.SIZE))
        self.known: dict[bytes, int] = {}

    @rule(target=tables, tokens=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def start(self, tokens):
        """What the manager does: share what is known, allocate and register the rest."""
        hashes = hash_blocks(tokens, 1)
        shared = self.pool.lookup(hashes)
        expected = []
        for content in hashes:
            if content not in self.known:
                break
            expected.append(self.known[content])
        assert shared == expected
        rest = len(hashes) - len(shared)
        revived = sum(self.references[block] == 0 for block in shared)
        assert self.pool.num_free_among(shared) == revived
        if rest + revived > len(self.free):
            return multiple()
        self.pool.share(shared)
        for block in shared:
            if self.references[block] == 0:
                self.free.remove(block)
            self.references[block] += 1
        fresh = self.pool.allocate(rest)
        assert fresh == self.free[:rest]
        del self.free[:rest]
        self.known = {c: block for c, block in self.known.items() if block not in fresh}
        for block, content in zip(fresh, hashes[len(shared) :], strict=True):
            self.references[block] = 1
            self.pool.register(block, content)
            self.known.setdefault(content, block)
        return shared + fresh

    @rule(table=consumes(tables))
    def end(self, table):
        self.pool.release(table)
        for block in reversed(table):
            self.references[block] -= 1
            if self.references[block] == 0 and block in self.known.values():
                self.free.append(block)
            elif self.references[block] == 0:
                self.free.insert(0, block)

    @precondition(lambda self: self.free)
    @rule(target=tables)
    def take_unregistered(self):
        table = self.pool.allocate(1)
        assert table == [self.free.pop(0)]
        self.references[table[0]] = 1
        self.known = {c: block for c, block in self.known.items() if block != table[0]}
        return table

    @invariant()
    def agrees(self):
        assert self.pool.num_free == len(self.free)
        assert self.pool.num_used == sum(count > 0 for count in self.references.values())
        for block, count in self.references.items():
            assert self.pool.num_free_among([block]) == (count == 0)
        for content, block in self.known.items():
            assert self.pool.lookup([content]) == [block]


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
