"""From what a caller passes to requests: tokens, limits, seeds. Everything is checked here."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import RequestError
from ppinfer.request import Prompt, Request
from ppinfer.sampling import INT64_MAX, SamplingParams


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the requests of an engine.

    Attributes:
        max_model_len: most tokens of prompt plus output.
        eos_token_ids: ids that end a sequence.
        kv_tokens: tokens that the KV cache holds, of all sequences together.
    """

    vocab_size: int = 0
    max_model_len: int = 0
    eos_token_ids: tuple[int, ...] = ()
    kv_tokens: int = INT64_MAX


class RequestFactory:
    """Turns prompts into requests of one model.

    ``tokenizer`` may be ``None``: then prompts must be token ids.
    """

    def __init__(self, tokenizer: Tokenizer | None, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._vocab_size, self._max_model_len = limits.vocab_size, limits.max_model_len
        self._kv_tokens = limits.kv_tokens
        self._eos_token_ids = frozenset(limits.eos_token_ids)
        self._ids = itertools.count()

    def make(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        priority: int = 0,
        salt: str = "",
        streamed: bool = False,
    ) -> Request:
        """A limit that goes past the context means as many tokens as there is room for.

        Raises ``RequestError`` where the prompt cannot be served, saying why.
        """
        self._check_tokens(token_ids)
        self._check_bias(params)
        room = self.require_room(token_ids, min(params.max_tokens, 1))
        seed = params.seed
        if seed is None and not params.is_greedy:
            seed = secrets.randbelow(INT64_MAX)
        limit = params.max_tokens
        if limit > room:
            # The last token is drawn but never computed, so it takes none of the cache.
            limit = min(room, max(1, self._kv_tokens - len(token_ids) + 1))
        params = msgspec.structs.replace(
            params, max_tokens=limit, min_tokens=min(params.min_tokens, limit), seed=seed
        )
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._eos_token_ids
        return Request(
            next(self._ids), tuple(token_ids), params, stop_ids, priority, salt, streamed
        )

    def require_room(self, token_ids: Sequence[int], new_tokens: int) -> int:
        """Tokens that the context has left after the prompt, if they are at least that many."""
        room = self._max_model_len - len(token_ids)
        if room < new_tokens:
            raise RequestError(
                f"The prompt has {len(token_ids)} tokens, but the context holds "
                f"{self._max_model_len} including {new_tokens} new; shorten the prompt or raise "
                "max_model_len."
            )
        return room

    def encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text that a prompt stands for (none for token ids), and its token ids.

        Raises:
            RequestError: it is none of the known kinds, or text without a tokenizer.
        """
        if self._tokenizer is not None:
            return self._tokenizer.encode_prompt(prompt)
        if isinstance(prompt, str) or is_chat(prompt):
            raise RequestError(
                "This engine has no tokenizer, so prompts must be token ids; pass "
                "tokenizer=<folder with tokenizer.json> to use text."
            )
        return None, list(prompt)  # type: ignore[arg-type]

    def _check_bias(self, params: SamplingParams) -> None:
        for token in params.logit_bias or ():
            if token >= self._vocab_size:
                raise RequestError(
                    f"logit_bias names token id {token}, which is outside the vocabulary of "
                    f"{self._vocab_size} tokens (0 to {self._vocab_size - 1})."
                )

    def _check_tokens(self, token_ids: Sequence[Any]) -> None:
        if not token_ids:
            raise RequestError("The prompt is empty; it needs at least one token.")
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise RequestError(f"Token ids must be whole numbers, not {token!r}.")
            if not 0 <= token < self._vocab_size:
                raise RequestError(
                    f"Token id {token} is outside the vocabulary of {self._vocab_size} tokens "
                    f"(0 to {self._vocab_size - 1})."
                )


def is_chat(prompt: object) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: text, ids and chats are one, a list of any of them is several."""
    if isinstance(prompts, str) or is_chat(prompts):
        return [prompts]  # type: ignore[list-item]
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"Prompts must be text, token ids, chat messages, or a list of them, not "
            f"{type(prompts).__name__}."
        )
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return cast(list[Prompt], list(prompts))


def pair_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """One set of parameters for each of ``count`` prompts."""
    if params is None:
        return [SamplingParams()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    listed = list(params)
    if len(listed) != count:
        raise RequestError(
            f"{len(listed)} SamplingParams were given for {count} prompts; give one for all, or "
            "one for each."
        )
    for item in listed:
        if not isinstance(item, SamplingParams):
            raise RequestError(f"Expected SamplingParams, not {type(item).__name__}.")
    return listed


def rows_of_batches(batches: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Token ids of every row of tokenizer batches, without their padding, on whichever side it is.

    A batch has ``input_ids`` of shape (rows, tokens), or (tokens,) for a single row, and usually
    an ``attention_mask`` of the same shape; both may be lists, arrays or tensors.

    Raises:
        RequestError: a batch has no ``input_ids``, or a mask of another shape.
    """
    if isinstance(batches, Mapping):
        raise RequestError("inference() takes a list of tokenizer batches: pass [inputs].")
    rows: list[list[int]] = []
    for batch in batches:
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise RequestError("A batch must hold input_ids, as a tokenizer returns them.")
        ids = _as_rows(batch["input_ids"])
        given = batch.get("attention_mask")
        mask = [[1] * len(row) for row in ids] if given is None else _as_rows(given)
        if [len(row) for row in mask] != [len(row) for row in ids]:
            raise RequestError("input_ids and attention_mask of a batch must have the same shape.")
        for row, keep in zip(ids, mask, strict=True):
            rows.append([token for token, kept in zip(row, keep, strict=True) if kept])
    return rows


def _as_rows(value: Any) -> list[list[int]]:
    listed = value.tolist() if hasattr(value, "tolist") else list(value)
    if listed and not isinstance(listed[0], list | tuple):
        return [listed]
    return [list(row) for row in listed]
