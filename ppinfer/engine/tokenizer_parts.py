"""What a tokenizer is made of, whatever files it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that have a name, by which a chat template may ask for them."""


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """``notes`` say, for the user, what had to be assumed."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    eos_token_ids: list[int]
    chat_template: str | None
    notes: tuple[str, ...] = ()
