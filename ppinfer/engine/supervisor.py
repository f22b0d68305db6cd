"""Speaks with all stage processes: start, hand-shake, messages, and a clean end in any case."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from ppinfer import errors
from ppinfer.comm.control import ChannelClosedError, ChannelFullError
from ppinfer.errors import PPInferError, StageError
from ppinfer.launch.process import StageProcess
from ppinfer.messages import (
    CacheReady,
    Message,
    ProfileResult,
    Shutdown,
    StageFailure,
    StageLoaded,
    StageReady,
    ToDriver,
    decode_to_driver,
    encode,
)

_AnswerT = TypeVar("_AnswerT", StageReady, ProfileResult, StageLoaded, CacheReady)

_POLITE_SECONDS = 1.0
_SHUTDOWN_SECONDS = 5.0
"""A stage is told to stop, then loses its channel, then is killed."""

_BLAME_SECONDS = 1.0
"""How long the first sign of trouble waits for the stage that caused it to be known."""


class Launcher(Protocol):
    """Starts stage processes, on this host or on several.

    ``store`` tells the stages where they find each other, ``shares_memory`` whether it left them
    shared-memory links.
    """

    store: str
    shares_memory: bool

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]: ...

    def close(self) -> None: ...


class Supervisor:
    """The driver's side of every control channel. One thread at a time may call it.

    ``wake`` may be called from any thread to end a ``poll`` early.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)  # a wake that finds no room is not needed
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._stages: list[StageProcess] = []
        self._heard: dict[int, float] = {}
        self._phase = "starting"
        self._closed = False

    @property
    def store(self) -> str:
        return self._launcher.store

    @property
    def shares_memory(self) -> bool:
        return self._launcher.shares_memory

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the stages that run on this host."""
        return [stage.pid for stage in self._stages]

    def start(self, *, threads: int | None, model_fd: int | None) -> None:
        self._stages = self._launcher.launch(threads=threads, model_fd=model_fd)
        for stage in self._stages:
            self._selector.register(stage.channel, selectors.EVENT_READ, stage)
            self._heard[stage.stage] = time.monotonic()

    def silence(self) -> list[float]:
        """Seconds since each stage last said anything, in stage order."""
        now = time.monotonic()
        return [now - self._heard[stage.stage] for stage in self._stages]

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # ------------------------------------------------------------ messages

    def send(self, stage: int, message: Message) -> None:
        """Raises ``StageError`` where the stage is gone."""
        self._send(self._stages[stage], encode(message))

    def broadcast(self, message: Message) -> None:
        """The same message to every stage, encoded once."""
        data = encode(message)
        for stage in self._stages:
            self._send(stage, data)

    def _send(self, stage: StageProcess, data: bytes) -> None:
        try:
            stage.channel.send(data)
        except ChannelFullError:
            raise StageError(
                f"Stage {stage.stage} took no message for too long while {self._phase}.",
                stage=stage.stage,
            ) from None
        except ChannelClosedError:
            raise self._explain(ended=stage) from None

    def poll(
        self, timeout: float | None, on_ready: Callable[[], None] | None = None
    ) -> list[ToDriver]:
        """Messages that came within ``timeout`` seconds, at once if there are any.

        ``on_ready`` is called when the wait is over and reading begins.

        Raises:
            StageError: a stage ended or broke the protocol; the exception that a stage reports is
                raised as its own type.
        """
        messages: list[ToDriver] = []
        readable = self._readable(timeout)
        if on_ready is not None:
            on_ready()
        for stage in readable:
            try:
                frames = stage.channel.receive_ready()
                self._heard[stage.stage] = time.monotonic()
                for frame in frames:
                    message = decode_to_driver(frame)
                    if isinstance(message, StageFailure):
                        raise self._explain(failure=message)
                    messages.append(message)
            except ChannelClosedError:
                raise self._explain(ended=stage) from None
            except msgspec.DecodeError as error:
                raise StageError(
                    f"Stage {stage.stage} sent a message that could not be read: {error}",
                    stage=stage.stage,
                ) from None
        return messages

    def gather(
        self,
        kind: type[_AnswerT],
        timeout: float,
        phase: str,
        on_message: Callable[[_AnswerT], None] | None = None,
        stages: Sequence[int] | None = None,
    ) -> list[_AnswerT]:
        """One message of ``kind`` from every stage, or from those of ``stages``, in stage order.

        Raises:
            StageError: a stage failed, or did not answer within ``timeout`` seconds; it is named.
        """
        self._phase = phase
        deadline = time.monotonic() + timeout
        found: dict[int, _AnswerT] = {}
        wanted = [s.stage for s in self._stages] if stages is None else list(stages)
        while len(found) < len(wanted):
            left = max(deadline - time.monotonic(), 0.0)
            messages = self.poll(left)  # also when it is late, as that may be this process's fault
            if not messages and not left:
                missing = [stage for stage in wanted if stage not in found]
                raise StageError(
                    f"Stage {missing[0]} did not answer within {timeout:g} s while {phase}.",
                    stage=missing[0],
                )
            for message in messages:
                assert isinstance(message, kind), f"{type(message).__name__} while {phase}"
                found[message.stage] = message
                if on_message is not None:
                    on_message(message)
        self._phase = "running"
        return [found[stage] for stage in wanted]

    def _readable(self, timeout: float | None) -> list[StageProcess]:
        ready = []
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    while self._woken.recv(4096):
                        pass
            else:
                ready.append(key.data)
        return ready

    # ------------------------------------------------------------ trouble

    def _explain(
        self, *, ended: StageProcess | None = None, failure: StageFailure | None = None
    ) -> PPInferError:
        """The exception that names the stage at fault.

        When a stage dies its neighbours complain too, often first. So a complaint about another
        stage waits a moment for that stage's own end or words.
        """
        failures = {} if failure is None else {failure.stage: failure}
        gone = [] if ended is None else [ended]
        deadline = time.monotonic() + _BLAME_SECONDS
        while not gone and all(f.blamed != f.stage for f in failures.values()):
            left = max(deadline - time.monotonic(), 0.0)
            self._listen(left, failures, gone)
            if not left:
                break
        if gone:  # a stage that has something to say says it before its channel closes
            self._listen(0.0, failures, [])
        own = [f for f in failures.values() if f.blamed == f.stage]
        silent = [stage for stage in gone if stage.stage not in failures]
        if own:
            return _as_exception(own[0])
        if silent:
            stage = silent[0]
            pid = "" if stage.pid is None else f" (process {stage.pid})"
            return StageError(
                f"Stage {stage.stage}{pid} died while {self._phase}: {stage.describe_end()}.",
                stage=stage.stage,
            )
        # In a chain of complaints, each about the stage before, the last one is to blame.
        first = [f for f in failures.values() if f.blamed not in failures]
        return _as_exception((first or list(failures.values()))[0])

    def _listen(
        self, timeout: float, failures: dict[int, StageFailure], gone: list[StageProcess]
    ) -> None:
        for stage in self._readable(timeout):
            try:
                for frame in stage.channel.receive_ready():
                    message = decode_to_driver(frame)
                    if isinstance(message, StageFailure):
                        failures[stage.stage] = message
            except (ChannelClosedError, msgspec.DecodeError):
                self._selector.unregister(stage.channel)
                gone.append(stage)

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """End every stage: politely, then by force. Leaves no process and no descriptor behind."""
        if self._closed:
            return
        self._closed = True
        for stage in self._stages:
            stage.channel.send_last(encode(Shutdown()))
        polite = time.monotonic() + _POLITE_SECONDS
        for stage in self._stages:
            stage.wait(polite - time.monotonic())
            stage.channel.close()
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        for stage in self._stages:
            if not stage.wait(deadline - time.monotonic()):
                stage.kill()
        self._selector.close()
        self._waker.close()
        self._woken.close()
        self._launcher.close()


def _as_exception(failure: StageFailure) -> PPInferError:
    return errors.from_name(failure.kind, failure.message, failure.blamed)
