"""Result files: whole or not at all. No torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppinfer.errors import ConfigError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then put it in its place.

    Raises:
        ConfigError: the folder is missing or cannot be written to.
    """
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
    os.close(fd)
    part = Path(name)
    try:
        part.chmod(0o644)
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def save_text(path: Path, text: str) -> None:
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
