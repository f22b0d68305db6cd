"""``--trace FILE``, the same on every command that runs an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppinfer.cli.terminal import say

if TYPE_CHECKING:
    from ppinfer.engine.engine import PPInferEngine

TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write what every stage did when, for ppinfer timeline, Perfetto, chrome://tracing.",
    ),
]


def check_trace(path: Path | None) -> None:
    """Raises ``TraceError`` where the file could not be written, before anything is loaded."""
    if path is not None:
        from ppinfer.trace.chrome import require_writable

        require_writable(path)


@contextmanager
def traced(engine: PPInferEngine, path: Path | None, quiet: bool = False) -> Iterator[None]:
    """Trace the engine, if that is wanted. What fails at the end is a warning: results stay."""
    if path is None:
        yield
        return
    tracing = engine.trace(path, warn=lambda words: say(f"warning: {words}"))
    try:
        with tracing:
            yield
    finally:  # an interrupted run has a trace too
        if tracing.is_written and not quiet:
            say(f"trace: {path} (show it: ppinfer timeline {path}, or at ui.perfetto.dev)")
