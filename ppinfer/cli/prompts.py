"""Prompts of ``ppinfer generate``: from the command line, a file, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppinfer.errors import RequestError
from ppinfer.request import Prompt


@dataclass(frozen=True)
class Given:
    """A prompt as the user wrote it, and as the engine takes it."""

    shown: Any
    prompt: Prompt

    @property
    def title(self) -> str:
        """The prompt on one line, for people."""
        shown = self.shown
        if isinstance(shown, list) and shown and isinstance(shown[-1], dict):
            shown = shown[-1].get("content", "")
        return " ".join(str(shown).split())


def collect(arguments: list[str], file: Path | None, chat: bool) -> list[Given]:
    """All prompts, in order; standard input is read where nothing else gives one.

    Raises:
        RequestError: a file cannot be read, or holds something else than prompts.
    """
    given: list[Prompt] = list(arguments)
    if file is not None:
        given += _read(str(file), _bytes_of(file), file.suffix == ".jsonl")
    elif not arguments and not sys.stdin.isatty():
        given += _read("standard input", sys.stdin.buffer.read(), False)
    return [Given(prompt, _as_chat(prompt) if chat else prompt) for prompt in given]


def _as_chat(prompt: Prompt) -> Prompt:
    """A text is what the user says; anything else is left as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}.") from error


def _read(name: str, data: bytes, is_jsonl: bool) -> Iterator[Prompt]:
    """One prompt a line; blank lines are passed over."""
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start}).") from error
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield _from_json(f"{name}, line {number}", line) if is_jsonl else line


def _from_json(where: str, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON: {error}.") from error
    if not isinstance(value, dict) or len(value.keys() & {"prompt", "messages"}) != 1:
        raise RequestError(f'{where} must be an object with either "prompt" or "messages".')
    prompt: Prompt = value["prompt"] if "prompt" in value else value["messages"]
    if not isinstance(prompt, str | list):
        raise RequestError(f"{where} must give text or a list, not {type(prompt).__name__}.")
    return prompt
