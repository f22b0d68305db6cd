"""What all commands share: how they end, what they say on standard error, and progress bars."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from ppinfer.errors import PPInferError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ResultT = TypeVar("ResultT")

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143

# ESC and its kin would let a model's text command the terminal; shown as pictures they cannot.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def guarded(command: Callable[..., ResultT]) -> Callable[..., ResultT]:
    """The command, with errors told in a sentence and exit statuses as shells expect them."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> ResultT:
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()
            return result
        except PPInferError as error:
            say("error: " + " ".join(str(error).split()))
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Whoever read has gone; what is still buffered must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Ends through the context managers, so that nothing is left running.

    Where a loop of asyncio runs, the loop itself raises: what it runs might swallow any exception.
    """
    asyncio = sys.modules.get("asyncio")  # not imported for this
    try:
        loop = asyncio and asyncio.get_running_loop()
    except RuntimeError:  # none runs
        loop = None
    if loop:
        loop.call_soon_threadsafe(_exit)
    else:
        _exit()


def _exit() -> None:
    raise SystemExit(EXIT_TERMINATED)


def say(message: str) -> None:
    """A line for people, on standard error."""
    print(f"ppinfer: {message}", file=sys.stderr, flush=True)


def refuse_usage(message: str) -> typer.Exit:
    """To be raised where a command line makes no sense."""
    say(f"error: {message}")
    return typer.Exit(EXIT_USAGE)


def write(text: str) -> None:
    """Text of a model to standard output, harmless to a terminal."""
    sys.stdout.write(text.translate(_PICTURES) if sys.stdout.isatty() else text)
    sys.stdout.flush()


class Bar:
    """A progress bar on standard error where that is a terminal, and nothing otherwise.

    It shows the latest event, and vanishes at the end; ``paused`` takes it away while something is
    printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._visible = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._event: str | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def show(self, event: str, done: float, total: float) -> None:
        """The signature is that of the engine's progress callbacks."""
        if not self._visible:
            return
        if self._progress is None:
            self._progress = _new_progress()
            self._progress.start()
        if event != self._event:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._event, self._task = event, self._progress.add_task(event, total=total)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total)

    def clear(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._event = self._task = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        if self._progress is None:
            yield
            return
        self._progress.stop()
        yield
        self._progress.start()


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
