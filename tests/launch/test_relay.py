"""A control channel over ZeroMQ: both ways, only for the peer that was meant, never for ever."""

from __future__ import annotations

import socket
import time

import pytest

from ppinfer.comm.control import Channel, ChannelClosedError
from ppinfer.launch.relay import KeyPair, RelayHub


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


@pytest.mark.parametrize("who_ends", ["here", "there"])
def test_frames_pass_both_ways_and_the_end_too(who_ends: str) -> None:
    near, far = RelayHub(60.0), RelayHub(60.0)
    here, here_relayed = pair()
    there, there_relayed = pair()
    near.allow([far.public_key])
    here.send(b"before the peer has come")
    far.connect(near.listen("127.0.0.1", here_relayed), near.public_key, there_relayed)
    assert there.receive() == b"before the peer has come"
    for size in (1, 100_000):
        here.send(b"a" * size)
        there.send(b"b" * size)
        assert there.receive() == b"a" * size
        assert here.receive() == b"b" * size
    ending, staying = (here, there) if who_ends == "here" else (there, here)
    ending.close()
    with pytest.raises(ChannelClosedError):
        staying.receive()
    staying.close()
    near.close()
    far.close()


def test_a_peer_that_never_comes_ends_the_channel() -> None:
    hub = RelayHub(0.3)
    ours, relayed = pair()
    hub.allow([KeyPair.generate().public])
    hub.listen("127.0.0.1", relayed)
    ours.send(b"hello?")
    with pytest.raises(ChannelClosedError):
        ours.receive()
    ours.close()
    hub.close()


def test_a_channel_that_ends_first_does_not_wait_for_its_peer() -> None:
    hub = RelayHub(90.0)
    ours, relayed = pair()
    hub.allow([KeyPair.generate().public])
    hub.listen("127.0.0.1", relayed)
    ours.close()
    started = time.monotonic()
    hub.close()
    assert time.monotonic() - started < 60


def test_a_stranger_is_not_let_in() -> None:
    near, stranger = RelayHub(2.0), RelayHub(2.0)
    here, here_relayed = pair()
    there, there_relayed = pair()
    near.allow([KeyPair.generate().public])
    stranger.connect(near.listen("127.0.0.1", here_relayed), near.public_key, there_relayed)
    there.send(b"let me in")
    for end in (here, there):
        with pytest.raises(ChannelClosedError):
            end.receive()
        end.close()
    near.close()
    stranger.close()
