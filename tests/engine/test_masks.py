"""Masks as the driver sees them: which ends they allow, and what becomes of those that are late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_async_engine import wait_until

from ppinfer.engine.masks import Beginning, Masks, MatcherConstraint, grammar_error
from ppinfer.errors import RequestError
from ppinfer.request import Request
from ppinfer.sampling import SamplingParams

EOS, OTHER = 2, 17


class FakeMatcher:
    """Allows token 5, and from the second on the end too; the fourth is the last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.gate: threading.Event | None = None
        self.error: str | Exception = ""
        self.only_end = False

    def compute_bitmask(self) -> bytes:
        if self.gate is not None:
            self.gate.wait(60)
        if isinstance(self.error, Exception):
            raise self.error
        allowed = [] if self.only_end else [5]
        return bits(*allowed, *([EOS] if self.is_accepting() else [])) + b"\0"  # of nobody

    def deep_copy(self) -> FakeMatcher:
        return self  # it is the only one's

    def consume_token(self, token: int) -> bool:
        self.tokens.append(token)
        return True

    def is_accepting(self) -> bool:
        return len(self.tokens) > 0

    def is_stopped(self) -> bool:
        return len(self.tokens) == 4 or self.tokens[-1:] == [EOS]

    def is_error(self) -> bool:
        return bool(self.error)

    def get_error(self) -> str:
        return str(self.error)


def bits(*tokens: int) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(3, "little")


@pytest.fixture
def masks() -> Iterator[Masks]:
    """None of them is late, however busy the machine is."""
    made = Masks(patience_seconds=30)
    yield made
    made.close()


@pytest.fixture
def hasty() -> Iterator[Masks]:
    made = Masks()
    yield made
    made.close()


def constraint_of(
    masks: Masks, matcher: FakeMatcher, stop_ids: tuple[int, ...] = (EOS,), **params: Any
) -> MatcherConstraint:
    request = Request(7, (1,), SamplingParams(**params), frozenset(stop_ids))
    return MatcherConstraint(Beginning.of(matcher, frozenset({EOS})), request, 3, masks)


def never() -> None:
    raise AssertionError("nothing was late")


def after(constraint: MatcherConstraint, masks: Masks, *tokens: int) -> bytes | None:
    for token in tokens:
        assert not constraint.accept(token)
        masks.settle(never)
    return constraint.mask


class TestEnds:
    def test_of_the_model(self, masks: Masks) -> None:
        constraint = constraint_of(masks, FakeMatcher())
        assert constraint.mask == bits(5)
        assert after(constraint, masks, 5) == bits(5, EOS)
        assert after(constraint, masks, 5, 5) == bits(5, EOS)
        assert constraint.accept(5), "nothing may follow the fourth"

    def test_stop_tokens_of_the_request_are_ends_too(self, masks: Masks) -> None:
        constraint = constraint_of(masks, FakeMatcher(), (EOS, OTHER))
        assert constraint.mask == bits(5)
        assert after(constraint, masks, 5) == bits(5, EOS, OTHER)

    def test_ignored(self, masks: Masks) -> None:
        constraint = constraint_of(masks, FakeMatcher(), (OTHER,), ignore_eos=True)
        assert after(constraint, masks, 5) == bits(5, OTHER)

    def test_not_before_min_tokens(self, masks: Masks) -> None:
        constraint = constraint_of(masks, FakeMatcher(), (EOS, OTHER), min_tokens=2)
        assert after(constraint, masks, 5) == bits(5)
        assert after(constraint, masks, 5) == bits(5, EOS, OTHER)

    def test_rather_too_early_than_never(self, masks: Masks) -> None:
        """What the request forbids is drawn where the grammar leaves nothing else, and is the end
        although it is none of the request's stop tokens."""
        matcher = FakeMatcher()
        constraint = constraint_of(masks, matcher, (OTHER,), min_tokens=9, ignore_eos=True)
        matcher.only_end = True
        assert after(constraint, masks, 5) == bits(EOS)
        assert constraint.accept(EOS)


class TestLate:
    def test_the_driver_is_woken(self, hasty: Masks) -> None:
        matcher = FakeMatcher()
        constraint = constraint_of(hasty, matcher)
        matcher.gate, woken = threading.Event(), threading.Event()
        constraint.accept(5)
        hasty.settle(woken.set)
        assert constraint.mask is None
        hasty.settle(never)  # one wait for each is enough
        assert not woken.is_set()
        matcher.gate.set()
        assert woken.wait(60)
        assert constraint.mask == bits(5, EOS)

    def test_others_do_not_wait_for_it(self, hasty: Masks) -> None:
        slow, fast = FakeMatcher(), FakeMatcher()
        constraints = constraint_of(hasty, slow), constraint_of(hasty, fast)
        slow.gate = threading.Event()
        for constraint in constraints:
            constraint.accept(5)
        hasty.settle(lambda: None)
        wait_until(lambda: constraints[1].mask is not None)
        assert constraints[0].mask is None
        slow.gate.set()


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "words"),
        [
            ("too complex\n<state>\nTokens", "followed: too complex.$"),
            (ValueError("oh"), "ValueError: oh"),
            ("NoExtensionBias\n<non-verbose/>", "nothing fits it"),
        ],
    )
    def test_are_told_once(self, masks: Masks, error: str | Exception, words: str) -> None:
        matcher = FakeMatcher()
        constraint = constraint_of(masks, matcher)
        matcher.error = error
        assert not constraint.accept(5)
        masks.settle(never)
        ((seq_id, failure),) = masks.failures()
        assert seq_id == 7
        assert failure.param == "grammar"
        with pytest.raises(RequestError, match=words):
            raise failure
        assert list(masks.failures()) == []
        assert constraint.mask is None

    def test_nothing_to_draw(self, masks: Masks) -> None:
        matcher = FakeMatcher()
        matcher.only_end = True
        with pytest.raises(RequestError, match="no token of this model fits it here"):
            constraint_of(masks, matcher)

    def test_long_reasons_are_cut(self) -> None:
        assert len(str(grammar_error("x " * 1000))) < 300
