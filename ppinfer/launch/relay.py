"""Carries a control channel from host to host: ZeroMQ outside, the local stream inside.

Both ends run the same ``Relay``. CURVE encrypts, and only keys that were exchanged through the
launcher's store are let in. When either side ends, so does the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ppinfer.comm.control import MAX_FRAME, Channel, ChannelClosedError
from ppinfer.errors import ConfigError

try:
    import zmq
    import zmq.auth.thread
    import zmq.utils.monitor
except ImportError as missing:
    raise ConfigError(
        "Running under torchrun needs ZeroMQ; install it with: pip install ppinfer[torchrun]"
    ) from missing

_HEARTBEAT_MS = 1_000
_SILENCE_MS = 10_000
"""A peer that sends no heartbeat for this long is gone."""
_LINGER_MS = 2_000
_END = b""
"""A frame of no bytes says that the stream on the sender's side has ended."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """CURVE keys in Z85."""

    public: str
    secret: str

    @classmethod
    def generate(cls) -> KeyPair:
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


def allow_keys(public_keys: Iterable[str]) -> Any:
    """Let in only peers with these keys; returns the authenticator, to be stopped at the end."""
    allowed = {key.encode() for key in public_keys}

    class Known:
        def callback(self, domain: str, key: bytes) -> bool:
            return key in allowed

    authenticator = zmq.auth.thread.ThreadAuthenticator(zmq.Context.instance())
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=Known())
    return authenticator


def listen(address: str, keys: KeyPair) -> tuple[Any, str]:
    """A socket for one peer, and the endpoint to reach it at."""
    remote = _socket(keys)
    remote.curve_server = True
    remote.bind(f"tcp://{address}:*")
    return remote, remote.getsockopt_string(zmq.LAST_ENDPOINT)


def connect(endpoint: str, keys: KeyPair, server_key: str) -> Any:
    remote = _socket(keys)
    remote.curve_serverkey = server_key.encode()
    remote.connect(endpoint)
    return remote


class Relay:
    """Copies frames both ways on a thread of its own until either side ends."""

    def __init__(self, channel: Channel, remote: Any) -> None:
        self._channel = channel
        self._remote = remote
        self._monitor = remote.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._thread = threading.Thread(target=self._run, name="ppinfer-relay", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._remote, self._monitor, self._channel.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._remote in ready and not self._take_remote():
                    break
                if self._channel.fileno() in ready and not self._take_local():
                    break
                if self._monitor in ready:
                    break
        finally:
            self._channel.close()
            self._remote.disable_monitor()
            self._remote.close(linger=_LINGER_MS)

    def _take_remote(self) -> bool:
        with contextlib.suppress(zmq.Again):
            while True:
                frame = self._remote.recv(zmq.NOBLOCK)
                if frame == _END:
                    return False
                try:
                    self._channel.send(frame)
                except ChannelClosedError:
                    self._remote.send(_END)
                    return False
        return True

    def _take_local(self) -> bool:
        try:
            for frame in self._channel.receive_ready():
                self._remote.send(frame)
        except ChannelClosedError:
            self._remote.send(_END)
            return False
        return True


def _socket(keys: KeyPair) -> Any:
    remote: Any = zmq.Context.instance().socket(zmq.PAIR)
    remote.curve_publickey = keys.public.encode()
    remote.curve_secretkey = keys.secret.encode()
    remote.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    remote.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
    remote.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    remote.setsockopt(zmq.SNDHWM, 0)
    return remote
