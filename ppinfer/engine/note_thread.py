"""A thread that owns what it works with: other threads leave it notes, and wait for answers."""

from __future__ import annotations

import copy
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from ppinfer.errors import EngineClosedError, PPInferError

_CHECK_SECONDS = 0.5

ResultT = TypeVar("ResultT")


class NoteThread:
    """``run`` is the thread's work; it calls ``read_notes`` now and then, and sets ``failure`` to
    what ended it, if that was not asked for. ``wake`` ends its waiting."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self.failure: PPInferError | None = None
        self._wake = wake
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def run(self) -> None:
        raise NotImplementedError

    def read_notes(self) -> None:
        """Do what others asked for; in the thread."""
        while not self._notes.empty():
            self._notes.get()()

    # ------------------------------------------------------------ for other threads

    def start(self) -> None:
        self._thread.start()

    @property
    def is_foreign(self) -> bool:
        """Whether this is a forked child, which has no such thread."""
        return self._pid != os.getpid()

    def leave(self, note: Callable[[], None]) -> None:
        """Have something done, soon; a forked child leaves nothing."""
        if not self.is_foreign:
            self._notes.put(note)
            self._wake()

    def ask(self, question: Callable[[Future[ResultT]], None]) -> ResultT:
        """Leave a question, and wait until somebody resolves its future.

        Raises:
            PPInferError: what ended the thread meanwhile, or what the answer is.
        """
        future: Future[ResultT] = Future()
        self.leave(lambda: question(future))
        while True:
            try:
                return future.result(timeout=_CHECK_SECONDS)
            except TimeoutError:
                self.check()

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        """Have something worked out in the thread; raises like ``ask``, and what ``work`` does."""
        return self.ask(lambda future: _resolve(future, work))

    def try_for(self, seconds: float, question: Callable[[Future[None]], None]) -> None:
        """Leave a question, and wait so long at most."""
        future: Future[None] = Future()
        self.leave(lambda: question(future))
        wait([future], seconds)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self.is_foreign:
            raise EngineClosedError(
                "This engine belongs to the process that made it; make one after the fork."
            )
        if self.failure is not None:
            raise fresh(self.failure)
        if not self._thread.is_alive():
            raise EngineClosedError("This engine is closed; make a new one.")

    def wait(self) -> PPInferError:
        """Wait for the end; returns why, ``EngineClosedError`` where it was asked for."""
        self._thread.join()
        return self.reason

    @property
    def reason(self) -> PPInferError:
        """Why it ended, once it has."""
        return fresh(self.failure or EngineClosedError("The engine was closed."))

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the end, unless this is the thread itself."""
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _resolve(future: Future[ResultT], work: Callable[[], ResultT]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # the caller's, not the thread's
        future.set_exception(error)


def fresh(error: PPInferError) -> PPInferError:
    """The same error to be raised once more: a traceback grows with every raise, and keeps alive
    whatever its frames refer to."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again
