"""Control channels: frames of MessagePack over a connected stream socket.

On one host the socket is one of an inherited pair, so nothing listens, and end-of-file tells each
side of the other's death. A frame is a 4-byte little-endian length and that many bytes; anything
longer than ``MAX_FRAME`` is refused before it is read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

MAX_FRAME = 1 << 28
LENGTH_BYTES = 4
_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 16


class ChannelClosedError(ConnectionError):
    """The other side is gone, or sent what is no frame."""


class ChannelFullError(ChannelClosedError):
    """The other side took nothing for as long as a send may wait; the channel is of no more use."""


def framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def frame_length(head: bytes | bytearray) -> int:
    """Of the frame that ``head`` begins; raises ``ChannelClosedError`` where it is none."""
    (length,) = _LENGTH.unpack_from(head)
    if length > MAX_FRAME:
        raise ChannelClosedError(f"a frame of {length} bytes is over the limit")
    return int(length)


class Channel:
    """One end of a control channel. ``send`` may be called from any thread, reading from one.

    ``send_timeout`` bounds, in seconds, how long a send waits for a reader that takes nothing.
    """

    def __init__(self, sock: socket.socket, send_timeout: float | None = None) -> None:
        sock.setblocking(True)
        if send_timeout is not None:
            seconds, fraction = divmod(send_timeout, 1)
            limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket = sock
        self._buffer = bytearray()
        self._send_lock = threading.Lock()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Raises ``ChannelClosedError`` where the other side is gone, or takes nothing in time."""
        if len(data) > MAX_FRAME:
            raise ValueError(f"a control frame of {len(data)} bytes is over the limit")
        try:
            with self._send_lock:
                self._socket.sendall(framed(data))
        except BlockingIOError as error:
            raise ChannelFullError("nothing was taken in time") from error
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def send_last(self, data: bytes) -> None:
        """Say a last word if that can be done at once; whether it arrives does not matter."""
        with contextlib.suppress(OSError):
            self._socket.send(framed(data), socket.MSG_DONTWAIT)

    def receive(self) -> bytes:
        """Block until a frame is here. Raises ``ChannelClosedError`` at the end."""
        while (frame := self._take()) is None:
            self._fill()
        return frame

    def receive_ready(self) -> list[bytes]:
        """Read once from a socket known to be readable; every frame that is complete by then.

        Raises ``ChannelClosedError`` at the end, after all whole frames were returned.
        """
        self._fill()
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not data:
            raise ChannelClosedError("end of file")
        self._buffer += data

    def _take(self) -> bytes | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        end = LENGTH_BYTES + frame_length(self._buffer)
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return frame

    def close(self) -> None:
        self._socket.close()
