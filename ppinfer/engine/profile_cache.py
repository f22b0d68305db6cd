"""Measurements of earlier starts, kept for this user.

One small JSON file for each combination of model shape, device and software. Nothing here ever
fails: what cannot be read or written is measured again. Removing the folder forgets everything.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ppinfer.schedule.pace import Measured

_MOST_BYTES = 1 << 20


class _Entry(msgspec.Struct, frozen=True):
    """``about`` is the whole key, for people and against a chance collision of its hash."""

    about: str
    measured: Measured


def folder() -> Path:
    """Where they are kept: ``ppinfer/profiles`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "ppinfer" / "profiles"


def key_of(about: Any) -> str:
    """The key of everything that a measurement depends on: plain data and structs."""
    return msgspec.json.encode(about, order="deterministic").decode()


def load(key: str, num_stages: int) -> Measured | None:
    """What so many stages measured under this key; ``None`` where there is nothing usable."""
    try:
        path = _path(key)
        if not _is_ours(path.parent) or path.stat().st_size > _MOST_BYTES:
            return None
        entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
        usable = entry.about == key and entry.measured.is_valid(num_stages)
        return entry.measured if usable else None
    except (OSError, RuntimeError, msgspec.MsgspecError, UnicodeError):
        return None  # RuntimeError: there is no home


def save(key: str, measured: Measured) -> None:
    """Keep a measurement, if that can be done; a reader sees all of it or nothing."""
    with suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not _is_ours(path.parent):
            return
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(_Entry(key, measured)))
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def _path(key: str) -> Path:
    return folder() / (hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + ".json")


def _is_ours(path: Path) -> bool:
    """Whether nobody else can have put files there."""
    status = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & others
    )
