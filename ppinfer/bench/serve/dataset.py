"""Files of prompts: ShareGPT's JSON, and JSON lines with ``prompt`` or ``messages``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ppinfer.bench.serve.workload import Entry, Messages
from ppinfer.errors import ConfigError

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
_LIMITS = ("max_tokens", "max_completion_tokens", "output_tokens")


def read_dataset(path: Path) -> list[Entry]:
    """Every entry; of a conversation, what comes before its last answer.

    An entry is an object with ``prompt``, ``messages`` or ``conversations``, and ``max_tokens`` if
    its answer's length matters; lines of OpenAI's batch files are such, too.

    Raises:
        ConfigError: the file cannot be read, or an entry is none; says which.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The dataset {path} cannot be read: {error.strerror}.") from error
    entries = [_entry(value, f"{path}, {place}") for value, place in _values(content, path)]
    found = [entry for entry in entries if entry is not None]
    if not found:
        raise ConfigError(f"The dataset {path} has no prompts.")
    return found


def _values(content: bytes, path: Path) -> Iterator[tuple[Any, str]]:
    """Each entry, and where it is."""
    if content.lstrip().startswith(b"["):
        for number, value in enumerate(_decode(content, str(path)), 1):
            yield value, f"entry {number}"
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield _decode(line, f"{path}, line {number}"), f"line {number}"


def _decode(content: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not JSON: {error}.") from error


def _entry(value: Any, where: str) -> Entry | None:
    """``None`` for a conversation in which the user says nothing."""
    if isinstance(value, dict) and isinstance(value.get("body"), dict):
        value = value["body"]
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, not {type(value).__name__}.")
    limit = next((value[name] for name in _LIMITS if value.get(name) is not None), None)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"{where}: max_tokens must be a positive whole number, not {limit!r}.")
    prompt = value.get("prompt")
    if isinstance(prompt, str):
        return Entry(prompt, limit)
    turns = value.get("messages", value.get("conversations"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConfigError(f"{where}: expected prompt (a text), messages or conversations (lists).")
    messages = _before_last_answer([_message(turn, where) for turn in turns])
    return Entry(messages, limit) if messages else None


def _message(turn: dict[str, Any], where: str) -> dict[str, Any]:
    if "role" in turn:
        return turn
    speaker, text = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise ConfigError(f"{where}: a turn needs role and content, or from and value.")
    return {"role": _ROLES.get(speaker, speaker), "content": text}


def _before_last_answer(messages: Messages) -> Messages:
    """The conversation up to the last thing that is no answer: that is what is asked."""
    last = max((i for i, m in enumerate(messages) if m["role"] != "assistant"), default=-1)
    asked = messages[: last + 1]
    return asked if any(message["role"] == "user" for message in asked) else []
