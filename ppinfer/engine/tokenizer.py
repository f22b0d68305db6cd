"""Text to token ids and back, equal to what ``transformers`` makes of the same files.

Knows the files of a tokenizer, and nothing of requests, limits or the model. The work itself is
done by the ``tokenizers`` library; this module finds out which special tokens, ends of sequence and
chat template belong to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from ppinfer.engine import tokenizer_folder, tokenizer_gguf
from ppinfer.engine.chat import ChatTemplate
from ppinfer.errors import RequestError
from ppinfer.request import ChatMessage, Prompt


class Tokenizer:
    """One model's tokenizer.

    Attributes:
        special_tokens: named special tokens, such as ``{"eos_token": "</s>"}``.
        eos_token_ids: ids that end a sequence: the tokenizer's own and the checkpoint's.
        chat_template: renders chat messages; refuses them where the model has no template.
        notes: what had to be assumed, each a sentence for the user.
        pieces: what each token stands for, where the tokenizer is byte-level BPE.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens or {})
        eos = self.token_id(self.special_tokens.get("eos_token"))
        self.eos_token_ids = frozenset(eos_token_ids) | ({eos} if eos is not None else set())
        self.chat_template = ChatTemplate(chat_template, self.special_tokens)
        self.notes = notes
        self.pieces = Pieces(backend)

    # ------------------------------------------------------------ construction

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From a checkpoint in the Hugging Face layout; ``tokenizer.json`` must be there.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        parts = tokenizer_folder.build(Path(folder))
        return cls(
            parts.backend,
            special_tokens=parts.special_tokens,
            eos_token_ids=parts.eos_token_ids,
            chat_template=parts.chat_template,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the ``tokenizer.*`` keys of a GGUF file, arrays given as lists.

        Raises:
            CheckpointError: a part is missing or damaged, or its kind is not known.
        """
        parts = tokenizer_gguf.build(metadata)
        return cls(
            parts.backend,
            special_tokens=parts.special_tokens,
            eos_token_ids=parts.eos_token_ids,
            chat_template=parts.chat_template,
            notes=parts.notes,
        )

    # ------------------------------------------------------------ use

    @property
    def vocab_size(self) -> int:
        """How many token ids there are, added tokens included; a model may have a few more."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.get("bos_token"))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are left out of decoded text."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def token_id(self, token: str | None) -> int | None:
        index = self.backend.token_to_id(token) if token is not None else None
        return int(index) if index is not None else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; may be empty for an empty one.

        The strings of special tokens in the text become those tokens, as in ``transformers``.

        Raises:
            RequestError: the text is not valid Unicode.
        """
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError:
            raise RequestError(_why_not_text(text)) from None

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation and of the header under which the model is to answer.

        Special tokens come from the template alone, so a BOS that it writes is never doubled.
        """
        return self.encode(self.chat_template.render(messages), add_special_tokens=False)

    def encode_prompt(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text that a prompt stands for (none for token ids), and its token ids.

        Raises:
            RequestError: the prompt is of another kind, or comes to no token at all.
        """
        text: str | None = None
        if isinstance(prompt, str):
            text, ids = prompt, self.encode(prompt)
        elif not isinstance(prompt, list | tuple):
            raise RequestError(
                "A prompt must be text, a list of token ids, or a list of chat messages, "
                f"not {type(prompt).__name__}."
            )
        elif prompt and isinstance(prompt[0], Mapping):
            text = self.chat_template.render(prompt)
            ids = self.encode(text, add_special_tokens=False)
        else:
            ids = _checked_ids(prompt)
        if not ids:
            raise RequestError("The prompt is empty: it comes to no token, and needs at least one.")
        return text, ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary stand for nothing."""
        return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_text(self, index: int) -> str:
        """One token's text by itself, special tokens included."""
        return self.decode([index], skip_special_tokens=False)


class Pieces(dict[int, tuple[bytes, str | None]]):
    """What a token of byte-level BPE stands for: its bytes, and their text where they are whole
    characters. Made when first looked up; nothing where the id is not known.

    An added token that is not spelled in bytes stands for its own text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, index: int) -> tuple[bytes, str | None]:
        token = self._backend.id_to_token(index) or ""
        letters = byte_letters()
        try:
            data = bytes([letters[char] for char in token])
        except KeyError:
            data = token.encode()
        text: str | None = None
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode()
        self[index] = data, text
        return data, text


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """Byte-level BPE writes printable bytes as themselves and moves the others past 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in letters]
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _checked_ids(prompt: Sequence[Any]) -> list[int]:
    for item in prompt:
        if isinstance(item, bool) or not isinstance(item, int):
            raise RequestError(
                "A prompt given as a list must hold either token ids or chat messages, "
                f"but has a {type(item).__name__}."
            )
    return list(prompt)


def _why_not_text(text: Any) -> str:
    if not isinstance(text, str):
        return f"A prompt's text must be a string, not {type(text).__name__}."
    return (
        "The prompt is not valid Unicode: it has half of a surrogate pair "
        "(a text cut in the middle of a character, or bytes decoded wrongly)."
    )
