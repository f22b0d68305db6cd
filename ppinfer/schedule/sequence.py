"""One request on its way through the schedule: its tokens, how far they are, and its KV blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ppinfer.messages import NewSequence, PromptLogprobs
from ppinfer.request import Constraint, FinishReason, Request
from ppinfer.schedule.block_pool import hash_blocks, root_of


@dataclass(slots=True, eq=False)
class Sequence:
    """State only; ``MicroBatchManager`` alone changes it.

    Two counters follow the tokens: plans cover the first ``num_planned`` of them, and the last
    stage has answered for the first ``num_computed``. They differ only while steps are in flight.
    Plans run ahead of results, so ``num_planned`` may count tokens that are still to be drawn; not
    so for a sequence with a constraint, whose next draw depends on the last.

    Attributes:
        max_blocks: KV blocks it holds at its longest.
        arrival: its place in the order in which all requests came.
        tokens: prompt, then output.
        num_pending: tokens that steps in flight will draw.
        num_known: tokens that were there when it was admitted, to be computed like a prompt.
        blocks: its KV block ids; block i holds the tokens from ``i * block_size`` on.
        promised: blocks that it may hold without asking.
        num_told: of its blocks, those that the stages know of.
        block_hashes: content hashes of its first blocks, as far as anyone asked.
        slot: index of its micro-batch; ``None`` while it waits and after its end.
        announced: whether a plan has introduced it to the stages.
        first_step: results of steps before this one are of an earlier life, and do not count.
        last_step: the last one that it has a part in.
        not_before: the step until which it rests while tokens of it are on their way.
        scores: log-probabilities of its prompt that have come and were not handed on.
        num_scored: of how many tokens the followers' log-probabilities have come; from there on
            they are asked for, also where tokens before it are computed once more.
        ends_with_prompt: whether no token is to be drawn.
    """

    request: Request
    max_blocks: int
    arrival: int
    tokens: list[int]
    num_planned: int = 0
    num_computed: int = 0
    num_pending: int = 0
    num_known: int = 0
    promised: int = 0
    num_told: int = 0
    first_step: int = 0
    last_step: int = -1
    not_before: int = 0
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    slot: int | None = None
    announced: bool = False
    scores: list[PromptLogprobs] = field(default_factory=list)
    num_scored: int = 0
    finish_reason: FinishReason | None = None
    seq_id: int = field(init=False)
    prompt_len: int = field(init=False)
    ends_with_prompt: bool = field(init=False)
    _most_computed: int = field(init=False)
    _num_to_score: int = field(init=False)
    _scores_taken: bool = field(init=False)
    _stop_ids: frozenset[int] = field(init=False)
    _constraint: Constraint | None = field(init=False)

    def __post_init__(self) -> None:
        self.seq_id = self.request.seq_id
        self.prompt_len = len(self.request.prompt_token_ids)
        params = self.request.params
        self.ends_with_prompt = params.max_tokens == 0
        # The last token of all is drawn but never computed.
        self._most_computed = self.prompt_len + max(params.max_tokens, 1) - 1
        self._num_to_score = 0 if params.prompt_logprobs is None else self.prompt_len - 1
        self._scores_taken = params.prompt_logprobs is None
        self._stop_ids = self.request.stop_ids
        self._constraint = self.request.constraint

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def output_token_ids(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    @property
    def num_unplanned(self) -> int:
        """Tokens that no plan covers yet: what is left of a prompt, or the latest drawn token."""
        drawn, most = len(self.tokens) + self.num_pending, self._most_computed
        count = (drawn if drawn < most else most) - self.num_planned
        constraint = self._constraint
        if constraint is not None and count and (self.num_pending or constraint.mask is None):
            count -= 1  # the last of them, which another is drawn after
        return count

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < max(self.num_known, self.prompt_len)

    @property
    def rank(self) -> tuple[int, int]:
        """Who comes first: by priority, then by arrival."""
        return self.request.priority, self.arrival

    @property
    def in_flight(self) -> bool:
        return self.num_planned > self.num_computed

    @property
    def needs_scores(self) -> bool:
        """Whether some of its prompt must be computed for the log-probabilities alone."""
        return self.num_scored < self._num_to_score

    def scores_in(self, start: int, end: int) -> int:
        """How many log-probabilities are still wanted of a step over the tokens in between."""
        return max(0, min(end, self._num_to_score) - max(start, self.num_scored))

    @property
    def is_constrained(self) -> bool:
        return self._constraint is not None

    @property
    def mask(self) -> bytes:
        """What the next token is drawn from; empty: everything."""
        return b"" if self._constraint is None else self._constraint.mask or b""

    def hashes(self, first: int, last: int, block_size: int) -> list[bytes]:
        """Content hashes of the blocks from ``first`` to before ``last``; each is computed once."""
        known = self.block_hashes
        if len(known) < last:
            tokens = self.tokens[len(known) * block_size : last * block_size]
            parent = known[-1] if known else root_of(self.request.salt)
            known += hash_blocks(tokens, block_size, parent)
        return known[first:last]

    def add_scores(self, end: int, scored: PromptLogprobs) -> None:
        """Keep what came of a step up to token ``end``, unless it came before."""
        last = min(end, self._num_to_score)
        if last - len(scored.logprobs) == self.num_scored:
            self.scores.append(scored)
            self.num_scored = last

    def take_scores(self) -> list[PromptLogprobs] | None:
        """Hand on the whole prompt's; ``None`` where none were asked for, or all are gone."""
        if self._scores_taken or self.needs_scores:
            return None
        self._scores_taken = True
        scores, self.scores = self.scores, []
        return scores

    def introduction(self) -> NewSequence:
        """What the stages are told of it when it is admitted."""
        request = self.request
        params = request.params
        history = tuple(self.tokens) if params.has_penalties or self.needs_scores else ()
        stop_ids = tuple(sorted(request.stop_ids))
        if params.grammar is not None:  # stages see masks
            params = msgspec.structs.replace(params, grammar=None)
        return NewSequence(request.seq_id, self.prompt_len, params, stop_ids, history)

    def enter(self, slot: int, num_cached: int) -> None:
        """Admitted to a slot, behind a beginning that needs not be computed."""
        self.slot = slot
        self.num_planned = self.num_computed = num_cached
        self.num_known = len(self.tokens)

    def start_over(self, next_step: int) -> None:
        """Out of its slot: nothing is computed, and what steps in flight draw is forgotten."""
        self.slot = None
        self.announced = False
        self.num_planned = self.num_computed = self.num_pending = self.num_told = 0
        self.first_step = next_step

    def take(self, token: int) -> FinishReason | None:
        """Append a token that was drawn; why the sequence ends with it, if it does.

        The sampler draws no stop token before ``min_tokens``; the same is asked for here.
        """
        tokens = self.tokens
        tokens.append(token)
        self.num_pending -= 1
        if token in self._stop_ids and self.num_output >= self.request.params.min_tokens:
            return "stop"
        if self._constraint is not None and self._constraint.accept(token):
            return "stop"
        return "length" if len(tokens) > self._most_computed else None
