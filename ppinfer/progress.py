"""What long work tells of how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float, float], None]
"""Called with what is going on, how much of it is done, and how much there is."""


def no_progress(event: str, done: float, total: float) -> None:
    pass
