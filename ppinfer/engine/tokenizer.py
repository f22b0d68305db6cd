"""Text to token ids and back, equal to what ``transformers`` makes of the same files.

Knows the files of a tokenizer, and nothing of requests, limits or the model. The work itself is
done by the ``tokenizers`` library; this module finds out which special tokens, ends of sequence and
chat template belong to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ppinfer.engine import tokenizer_gguf
from ppinfer.engine.chat import ChatTemplate
from ppinfer.errors import CheckpointError, RequestError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that have a name, and that a chat template may ask for by it."""

_GGUF_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
_GGUF_ENDS = ("eos", "eot", "eom")  # end of sequence, of turn, of message


class Tokenizer:
    """One model's tokenizer.

    Attributes:
        special_tokens: named special tokens, such as ``{"eos_token": "</s>"}``.
        eos_token_ids: ids that end a sequence: the tokenizer's own and the checkpoint's.
        chat_template: renders chat messages; refuses them where the model has no template.
        notes: what had to be assumed, each a sentence for the user.
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
        self._token_bytes: dict[int, bytes] = {}

    # ------------------------------------------------------------ construction

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From a checkpoint in the Hugging Face layout; ``tokenizer.json`` must be there.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; write one with "
                "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error
        config = _read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # how checkpoints before 2023 named them
            config |= _read_json(folder / "special_tokens_map.json")
        special = {
            name: _content(value)
            for name, value in config.items()
            if name in SPECIAL_NAMES and value
        }
        _add_missing(backend, config, special)
        return cls(
            backend,
            special_tokens=special,
            eos_token_ids=_eos_of_folder(folder),
            chat_template=_template_of_folder(folder, config),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the ``tokenizer.*`` keys of a GGUF file, arrays given as lists.

        Raises:
            CheckpointError: a part is missing or damaged, or its kind is not known.
        """
        backend, notes = tokenizer_gguf.build(metadata)
        tokens = metadata["tokenizer.ggml.tokens"]
        ids = {key: tokenizer_gguf.token_id(metadata, key, len(tokens)) for key in _GGUF_ENDS}
        special = {}
        for name, key in _GGUF_NAMES.items():
            index = tokenizer_gguf.token_id(metadata, key, len(tokens))
            if index is not None:
                special[name] = tokens[index]
        template = metadata.get("tokenizer.chat_template")
        return cls(
            backend,
            special_tokens=special,
            eos_token_ids=[index for index in ids.values() if index is not None],
            chat_template=template if isinstance(template, str) else None,
            notes=notes,
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

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids outside the vocabulary stand for nothing."""
        return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_text(self, index: int) -> str:
        """One token's text by itself, special tokens included."""
        return self.decode([index], skip_special_tokens=False)

    def token_bytes(self, index: int) -> bytes:
        """What one token of byte-level BPE stands for; nothing where the id is not known.

        An added token that is not spelled in bytes stands for its own text.
        """
        found = self._token_bytes.get(index)
        if found is None:
            token = self.backend.id_to_token(index) or ""
            letters = byte_letters()
            try:
                found = bytes([letters[char] for char in token])
            except KeyError:
                found = token.encode()
            self._token_bytes[index] = found
        return found


# ---------------------------------------------------------------- files of a checkpoint


def _read_json(path: Path) -> dict[str, Any]:
    """An object from a file that may be absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def _content(token: Any) -> str:
    """A special token is written as a string, or as an object with its ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise CheckpointError(f"tokenizer_config.json has a special token without text: {token!r}.")
    return content


def _add_missing(
    backend: tokenizers.Tokenizer, config: dict[str, Any], special: dict[str, str]
) -> None:
    """Tokens that ``tokenizer_config.json`` lists and ``tokenizer.json`` does not."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    try:
        added = [
            AddedToken(**fields)
            for _, fields in sorted(listed.items(), key=lambda item: int(item[0]))
            if fields["content"] not in known
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"tokenizer_config.json lists damaged tokens: {error}") from error
    known |= {token.content for token in added}
    more = extra.values() if isinstance(extra, dict) else extra
    for content in dict.fromkeys((*special.values(), *map(_content, more))):
        if content not in known:
            added.append(AddedToken(content, special=True, normalized=False))
    backend.add_tokens(added)


def _eos_of_folder(folder: Path) -> list[int]:
    """The ids at which the checkpoint says generation ends."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = [value] if isinstance(value, int) else value
        if isinstance(ids, list) and ids and all(isinstance(item, int) for item in ids):
            return ids
    return []


def _template_of_folder(folder: Path, config: dict[str, Any]) -> str | None:
    """The default chat template: a file of its own goes before ``tokenizer_config.json``."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not readable text: {error}") from error
    value = config.get("chat_template")
    if value is None:
        value = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(value, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


# ---------------------------------------------------------------- texts and bytes


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """Byte-level BPE writes printable bytes as themselves and moves the others past 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in letters]
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _why_not_text(text: Any) -> str:
    if not isinstance(text, str):
        return f"A prompt's text must be a string, not {type(text).__name__}."
    return (
        "The prompt is not valid Unicode: it has half of a surrogate pair "
        "(a text cut in the middle of a character, or bytes decoded wrongly)."
    )
