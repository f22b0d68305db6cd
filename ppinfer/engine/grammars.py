"""Grammars compiled for one model, within limits of time and size, and kept for later requests."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ppinfer.engine.driver import Driver
from ppinfer.engine.live import LiveRequest
from ppinfer.engine.masks import Beginning, Masks, MatcherConstraint, grammar_error
from ppinfer.engine.prompts import Limits
from ppinfer.errors import PPInferError, RequestError
from ppinfer.grammar import Grammar
from ppinfer.request import Request

if TYPE_CHECKING:
    from ppinfer.engine.tokenizer import Tokenizer

COMPILE_SECONDS = 5.0
"""A usual grammar takes a millisecond."""

_AT_ONCE = 2
_KEPT = 32
# Of llguidance, whose own defaults are for those who trust a grammar.
_LIMITS: dict[str, Any] = {
    "verbose_errors": False,
    "initial_lexer_fuel": 500_000,
    "max_grammar_size": 200_000,
    "max_lexer_states": 50_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
}


class Grammars:
    """Gives requests their constraints; for any thread.

    ``tokenizer`` may be ``None``: then no request may have a grammar.
    """

    def __init__(self, tokenizer: Tokenizer | None, limits: Limits, masks: Masks) -> None:
        self._tokenizer, self._limits, self._masks = tokenizer, limits, masks
        self._turn = threading.Semaphore(_AT_ONCE)
        self._vocabulary_lock = threading.Lock()
        self._vocabulary: Any = None
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, Future[Beginning]] = OrderedDict()

    def constrain(self, request: Request) -> Request:
        """The request with the constraint of its grammar, if it has one.

        Waits while that is compiled, ``COMPILE_SECONDS`` at most.

        Raises:
            RequestError: it cannot be compiled, or not in that time, or nothing fits it.
        """
        if request.params.grammar is None:
            return request
        try:
            compiled = self._future(request.params.grammar).result(COMPILE_SECONDS)
        except TimeoutError:
            why = f"it could not be compiled within {COMPILE_SECONDS:g} seconds"
            raise grammar_error(why) from None
        size = (self._limits.vocab_size + 7) // 8
        constraint = MatcherConstraint(compiled, request, size, self._masks)
        return dataclasses.replace(request, constraint=constraint)

    def _future(self, grammar: Grammar) -> Future[Beginning]:
        with self._lock:
            future = self._compiled.get(grammar)
            if future is None:
                future = self._compiled[grammar] = Future()
                # Not of a pool, whose stuck threads the end of the program would wait for.
                threading.Thread(target=self._compile, args=(grammar, future), daemon=True).start()
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return future

    def _compile(self, grammar: Grammar, future: Future[Beginning]) -> None:
        try:
            with self._turn:
                future.set_result(self._made(grammar))
        except BaseException as error:  # a panic of the library is no Exception
            with self._lock:
                self._compiled.pop(grammar, None)
            known = isinstance(error, PPInferError)
            future.set_exception(error if known else grammar_error(repr(error)))

    def _made(self, grammar: Grammar) -> Beginning:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer, self._limits)
        from llguidance import LLMatcher, LLParserLimits, grammar_from

        matcher = LLMatcher(
            self._vocabulary,
            grammar_from(grammar.kind, grammar.text),
            log_level=0,
            limits=LLParserLimits(**_LIMITS),
        )
        if matcher.is_error():
            raise grammar_error(matcher.get_error())
        return Beginning.of(matcher, frozenset(self._vocabulary.eos_tokens))


def _vocabulary(tokenizer: Tokenizer | None, limits: Limits) -> Any:
    """What llguidance must know of a tokenizer; takes a part of a second."""
    if tokenizer is None:
        raise RequestError("A grammar needs a tokenizer, and this engine has none.", "grammar")
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise RequestError(
            "Grammars need the package llguidance: pip install ppinfer[guided].", "grammar"
        ) from None
    try:
        return LLTokenizer(
            tokenizer.backend.to_str(),
            n_vocab=max(limits.vocab_size, tokenizer.vocab_size),
            eos_token=list(limits.eos_token_ids) or None,
        )
    except ValueError as error:
        raise RequestError(
            f"Grammars do not work with this model's tokenizer: {error}.", "grammar"
        ) from error


class Latecomers:
    """Hands requests to the driver, those with a grammar when that is compiled, each from a thread
    that waits for it; they may be aborted meanwhile."""

    def __init__(self, grammars: Grammars, driver: Driver) -> None:
        self._grammars, self._driver = grammars, driver
        self._lock = threading.Lock()
        self._awaited: set[int] = set()

    def submit(self, live: LiveRequest) -> None:
        if live.request.params.grammar is None:
            self._driver.submit([live])
            return
        with self._lock:
            self._awaited.add(live.request.seq_id)
        threading.Thread(target=self._wait, args=(live,), daemon=True).start()

    def abort(self, seq_ids: Collection[int]) -> None:
        with self._lock:
            self._awaited.difference_update(seq_ids)
            self._driver.abort(seq_ids)

    def _wait(self, live: LiveRequest) -> None:
        failure: PPInferError | None = None
        try:
            live.request = self._grammars.constrain(live.request)
        except PPInferError as error:
            failure = error
        except Exception as error:  # or the request would wait for ever
            failure = grammar_error(repr(error))
        with self._lock:
            if live.request.seq_id not in self._awaited:
                return
            self._awaited.remove(live.request.seq_id)
            if failure is None:
                self._driver.submit([live])
            else:
                live.sink.put([failure])
