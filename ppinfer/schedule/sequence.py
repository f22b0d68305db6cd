"""One request on its way through the schedule: its tokens, how far they are, and its KV blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppinfer.messages import NewSequence
from ppinfer.request import FinishReason, Request
from ppinfer.schedule.block_pool import hash_blocks, root_of


@dataclass(slots=True, eq=False)
class Sequence:
    """State only; ``MicroBatchManager`` alone changes it.

    Two counters follow the tokens: plans cover the first ``num_planned`` of them, and the last
    stage has answered for the first ``num_computed``. They differ only while steps are in flight.
    Plans run ahead of results, so ``num_planned`` may count tokens that are still to be drawn.

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
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    slot: int | None = None
    announced: bool = False
    finish_reason: FinishReason | None = None
    seq_id: int = field(init=False)
    prompt_len: int = field(init=False)
    _most_computed: int = field(init=False)
    _stop_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.seq_id = self.request.seq_id
        self.prompt_len = len(self.request.prompt_token_ids)
        # The last token of all is drawn but never computed.
        self._most_computed = self.prompt_len + self.request.params.max_tokens - 1
        self._stop_ids = self.request.stop_ids

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
        return (drawn if drawn < most else most) - self.num_planned

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

    def hashes(self, first: int, last: int, block_size: int) -> list[bytes]:
        """Content hashes of the blocks from ``first`` to before ``last``; each is computed once."""
        known = self.block_hashes
        if len(known) < last:
            tokens = self.tokens[len(known) * block_size : last * block_size]
            parent = known[-1] if known else root_of(self.request.salt)
            known += hash_blocks(tokens, block_size, parent)
        return known[first:last]

    def introduction(self) -> NewSequence:
        """What the stages are told of it when it is admitted."""
        request = self.request
        history = tuple(self.tokens) if request.params.has_penalties else ()
        stop_ids = tuple(sorted(request.stop_ids))
        return NewSequence(request.seq_id, self.prompt_len, request.params, stop_ids, history)

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
        return "length" if len(tokens) > self._most_computed else None
