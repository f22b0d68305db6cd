from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppinfer.comm.control import MAX_FRAME, Channel, ChannelClosedError, ChannelFullError


@pytest.fixture
def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


@given(st.lists(st.binary(max_size=2000), max_size=20), st.integers(1, 500))
def test_frames_survive_any_cut(frames: list[bytes], cut: int) -> None:
    left, right = socket.socketpair()
    with left:
        channel = Channel(right)
        data = b"".join(struct.pack("<I", len(f)) + f for f in frames)
        received: list[bytes] = []
        for start in range(0, len(data), cut):
            left.sendall(data[start : start + cut])
            received += channel.receive_ready()
        assert received == frames
        channel.close()


def test_a_large_frame_passes_while_the_other_side_reads(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    data = bytes(range(256)) * 20_000
    sender = threading.Thread(target=left.send, args=(data,))
    sender.start()
    assert right.receive() == data
    sender.join()
    left.close()
    right.close()


def test_the_end_is_told_after_all_whole_frames(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    left.send(b"last words")
    left.close()
    assert right.receive() == b"last words"
    with pytest.raises(ChannelClosedError):
        right.receive()
    right.close()


def test_a_reader_that_takes_nothing_is_not_waited_for_for_ever() -> None:
    left, right = socket.socketpair()
    channel = Channel(left, send_timeout=0.2)
    with right, pytest.raises(ChannelFullError):
        while True:
            channel.send(b"x" * 100_000)
    channel.send_last(b"does not block either")
    channel.close()


def test_an_absurd_length_is_refused() -> None:
    left, right = socket.socketpair()
    with left:
        channel = Channel(right)
        left.sendall(struct.pack("<I", MAX_FRAME + 1))
        with pytest.raises(ChannelClosedError, match="over the limit"):
            channel.receive()
        channel.close()


def test_sending_to_nobody_is_an_error(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    right.close()
    with pytest.raises(ChannelClosedError):
        for _ in range(100):
            left.send(b"x" * 10_000)
    left.close()
