"""Log-probabilities in OpenAI's two shapes, and the text of single tokens that both need."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from ppinfer.engine.detokenizer import decoder_kinds
from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.request import PromptTokenLogprobs, TokenLogprobs
from ppinfer.server.protocol import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
)

LOWEST = -9999.0
"""JSON has no infinity; this is what OpenAI writes for a token that cannot come."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """What each token of a vocabulary stands for by itself; without a tokenizer, its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._anchor = _anchor(tokenizer)
        self._byte_level = tokenizer is not None and decoder_kinds(tokenizer) == ("ByteLevel",)
        self.bytes_of = lru_cache(maxsize=65_536)(self._bytes_of)
        self.text_of = lru_cache(maxsize=65_536)(self._text_of)

    def _bytes_of(self, token_id: int) -> bytes:
        """A token may be a part of a character."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return f"token_id:{token_id}".encode()
        if self._byte_level:
            return tokenizer.pieces[token_id][0]
        if byte := _BYTE.fullmatch(tokenizer.backend.id_to_token(token_id) or ""):
            return bytes([int(byte[1], 16)])
        # By itself a token would lose the blank that it begins with.
        before = tokenizer.decode(self._anchor, skip_special_tokens=False)
        both = tokenizer.decode([*self._anchor, token_id], skip_special_tokens=False)
        return both[len(before) :].encode()

    def _text_of(self, token_id: int) -> str:
        """Bytes that are no characters are spelled, so that different tokens look different."""
        found = self.bytes_of(token_id)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def _anchor(tokenizer: Tokenizer | None) -> list[int]:
    """Some token that others may follow."""
    return tokenizer.encode("a", add_special_tokens=False)[-1:] if tokenizer is not None else []


def chat_logprobs(entries: Sequence[TokenLogprobs], texts: TokenTexts) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprob(
                token=texts.text_of(entry.token_id),
                logprob=max(entry.logprob, LOWEST),
                bytes=list(texts.bytes_of(entry.token_id)),
                top_logprobs=[
                    TopLogprob(
                        texts.text_of(token), max(value, LOWEST), list(texts.bytes_of(token))
                    )
                    for token, value in entry.top.items()
                ],
            )
            for entry in entries
        ]
    )


class CompletionLogprobsMaker:
    """The older shape, in which every token has its place in the text, in characters.

    ``echo`` is the text of the prompt where the answer begins with it.
    """

    def __init__(self, texts: TokenTexts, hidden: frozenset[int], echo: str = "") -> None:
        self._texts = texts
        self._hidden = hidden  # tokens that leave no text
        self._echo = echo
        self._offset = len(echo)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def make(
        self,
        entries: Sequence[TokenLogprobs],
        prompt_token_ids: Sequence[int] = (),
        prompt: Sequence[PromptTokenLogprobs | None] = (),
    ) -> CompletionLogprobs:
        """For the next tokens, and before them for the prompt, where it comes with these.

        The token itself is always among the likeliest.
        """
        made = CompletionLogprobs([], [], [], [])
        if prompt:
            self._offset = 0
            for token, scored in zip(prompt_token_ids, prompt, strict=True):
                self._add(made, token, scored)
                self._offset += self._echoed(token)
            self._offset = len(self._echo)
            self._decoder.reset()
        for entry in entries:
            self._add(made, entry.token_id, entry)
            if entry.token_id not in self._hidden:
                self._offset += len(self._decoder.decode(self._texts.bytes_of(entry.token_id)))
        return made

    def _add(self, made: CompletionLogprobs, token: int, entry: TokenLogprobs | None) -> None:
        text = self._texts.text_of(token)
        made.tokens.append(text)
        made.text_offset.append(self._offset)
        if entry is None:
            made.token_logprobs.append(None)
            made.top_logprobs.append(None)
            return
        value = max(entry.logprob, LOWEST)
        made.token_logprobs.append(value)
        top = {self._texts.text_of(t): max(v, LOWEST) for t, v in entry.top.items()}
        made.top_logprobs.append(top | {text: value})

    def _echoed(self, token: int) -> int:
        """How many characters of the echo are the token's, which stands at the offset.

        A tokenizer may begin with special tokens, or with a blank, of which the text knows nothing.
        """
        text = self._decoder.decode(self._texts.bytes_of(token))
        if self._echo.startswith(text, self._offset):
            return len(text)
        if token in self._hidden:
            return 0
        if text.startswith(" ") and self._echo.startswith(text[1:], self._offset):
            return len(text) - 1
        return min(len(text), len(self._echo) - self._offset)
