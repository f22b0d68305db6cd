"""The supervisor against stages that are mere sockets: who is blamed, and that nothing hangs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ppinfer.comm.control import Channel
from ppinfer.engine import supervisor as supervisors
from ppinfer.engine.supervisor import Supervisor
from ppinfer.errors import CheckpointError, StageError
from ppinfer.launch.process import StageProcess
from ppinfer.messages import (
    CacheReady,
    Message,
    Shutdown,
    StageFailure,
    StatsRequest,
    decode_to_stage,
    encode,
)


class SocketLauncher:
    store = "none"
    shares_memory = False

    def __init__(self, num_stages: int) -> None:
        pairs = [socket.socketpair() for _ in range(num_stages)]
        self._ours = [Channel(ours) for ours, _ in pairs]
        self.stages = [Channel(theirs) for _, theirs in pairs]
        self.closed = False

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]:
        return [StageProcess(i, channel) for i, channel in enumerate(self._ours)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def launcher() -> Iterator[SocketLauncher]:
    launcher = SocketLauncher(3)
    yield launcher
    for stage in launcher.stages:
        stage.close()


@pytest.fixture
def supervisor(launcher: SocketLauncher) -> Iterator[Supervisor]:
    supervisor = Supervisor(launcher)
    supervisor.start(threads=None, model_fd=None)
    yield supervisor
    supervisor.close()


def say(launcher: SocketLauncher, stage: int, message: Message) -> None:
    launcher.stages[stage].send(encode(message))


def test_one_message_from_each_in_stage_order(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    for stage in (2, 0, 1):
        say(launcher, stage, CacheReady(stage))
    ready = supervisor.gather(CacheReady, 60.0, "testing")
    assert [message.stage for message in ready] == [0, 1, 2]


def test_what_has_come_counts_however_late_it_is_read(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    for stage in (2, 0, 1):
        say(launcher, stage, CacheReady(stage))
    assert len(supervisor.gather(CacheReady, 0.0, "testing")) == 3


def test_a_silent_stage_is_named_at_the_deadline(
    launcher: SocketLauncher, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stands still until the other two are heard."""
    heard: list[CacheReady] = []
    began = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() if len(heard) == 2 else began)
    monkeypatch.setattr(supervisors, "time", clock)
    say(launcher, 0, CacheReady(0))
    say(launcher, 2, CacheReady(2))
    with pytest.raises(StageError, match=r"Stage 1 did not answer within 0.2 s while testing"):
        supervisor.gather(CacheReady, 0.2, "testing", heard.append)


def test_a_stages_own_failure_is_raised_as_what_it_is(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    say(launcher, 1, StageFailure(1, "CheckpointError", "the file is cut short.", 1))
    with pytest.raises(CheckpointError, match=r"^the file is cut short\.$"):
        supervisor.gather(CacheReady, 60.0, "loading")


def test_the_stage_that_died_is_blamed_not_the_neighbour_that_noticed(
    launcher: SocketLauncher, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "_BLAME_SECONDS", 30)
    say(launcher, 2, StageFailure(2, "StageError", "Nothing more came from stage 1.", 1))
    death = threading.Timer(0.2, launcher.stages[1].close)
    death.start()
    with pytest.raises(StageError, match="Stage 1 died while starting") as caught:
        supervisor.gather(CacheReady, 60.0, "starting")
    assert caught.value.stage == 1
    death.join()


def test_a_death_that_is_known_is_blamed_however_late_it_is_read(
    launcher: SocketLauncher, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "_BLAME_SECONDS", 0)
    say(launcher, 2, StageFailure(2, "StageError", "Nothing more came from stage 1.", 1))
    supervisor._selector.select(60)  # it comes first
    launcher.stages[1].close()
    with pytest.raises(StageError, match="Stage 1 died while"):
        supervisor.poll(60.0)


def test_last_words_count_more_than_the_end(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    say(launcher, 0, StageFailure(0, "StageError", "Stage 0 failed: boom", 0))
    launcher.stages[0].close()
    launcher.stages[1].close()
    with pytest.raises(StageError, match="boom"):
        supervisor.poll(60.0)


def test_a_complaint_that_nobody_confirms_is_believed_after_a_while(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    say(launcher, 2, StageFailure(2, "StageError", "Nothing more came from stage 1.", 1))
    with pytest.raises(StageError, match="Nothing more came") as caught:
        supervisor.poll(60.0)
    assert caught.value.stage == 1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_in_a_chain_of_complaints_the_silent_stage_is_blamed(
    launcher: SocketLauncher, supervisor: Supervisor, order: tuple[int, int]
) -> None:
    for stage in order:
        say(launcher, stage, StageFailure(stage, "StageError", f"{stage - 1}?", stage - 1))
    with pytest.raises(StageError) as caught:
        supervisor.poll(60.0)
    assert caught.value.stage == 0


def test_waking_never_blocks(supervisor: Supervisor) -> None:
    for _ in range(2000):
        supervisor.wake()


def test_rubbish_is_refused_and_named(launcher: SocketLauncher, supervisor: Supervisor) -> None:
    launcher.stages[1].send(b"\x93\x01\x02")
    with pytest.raises(StageError, match="Stage 1 sent a message that could not be read"):
        supervisor.poll(60.0)


def test_sending_to_a_stage_that_is_gone_names_it(
    launcher: SocketLauncher, supervisor: Supervisor
) -> None:
    launcher.stages[2].close()
    with pytest.raises(StageError, match="Stage 2"):
        supervisor.broadcast(StatsRequest())


def test_a_poll_can_be_woken(supervisor: Supervisor) -> None:
    started = time.monotonic()
    threading.Timer(0.1, supervisor.wake).start()
    assert supervisor.poll(60.0) == []
    assert time.monotonic() - started < 30


def test_closing_tells_every_stage_and_may_be_repeated(launcher: SocketLauncher) -> None:
    supervisor = Supervisor(launcher)
    supervisor.start(threads=None, model_fd=None)
    supervisor.close()
    supervisor.close()
    assert launcher.closed
    for stage in launcher.stages:
        assert decode_to_stage(stage.receive()) == Shutdown()
