"""The parts of a tokenizer from a checkpoint folder in the Hugging Face layout.

``tokenizer.json`` says how text becomes ids; the files beside it add which tokens are special,
where generation ends, and the chat template. All are read as ``transformers`` reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ppinfer.engine.tokenizer_parts import SPECIAL_NAMES, TokenizerParts
from ppinfer.errors import CheckpointError


def build(folder: Path) -> TokenizerParts:
    """Reads what is there; only ``tokenizer.json`` must be.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
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
        name: _content(value) for name, value in config.items() if name in SPECIAL_NAMES and value
    }
    _add_missing(backend, config, special)
    return TokenizerParts(
        backend=backend,
        special_tokens=special,
        eos_token_ids=_eos_of_folder(folder),
        chat_template=_template_of_folder(folder, config),
    )


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
