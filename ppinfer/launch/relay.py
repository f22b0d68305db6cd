"""Carries a control channel from host to host: ZeroMQ outside, the local stream inside.

Both ends run the same ``Relay``. CURVE encrypts, and only keys that were exchanged through the
launcher's store are let in. When either side ends, so does the other.
"""

from __future__ import annotations

import contextlib
import threading
import time
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


class RelayHub:
    """The ZeroMQ sockets of one engine, with a context of their own.

    ``timeout`` bounds, in seconds, how long a relay waits for its peer to come.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._context: Any = zmq.Context()
        self._keys = KeyPair.generate()
        self._authenticator: Any = None
        self._relays: list[Relay] = []

    @property
    def public_key(self) -> str:
        return self._keys.public

    def allow(self, public_keys: Iterable[str]) -> None:
        """Let in only peers with these keys."""
        allowed = {key.encode() for key in public_keys}

        class Known:
            def callback(self, domain: str, key: bytes) -> bool:
                return key in allowed

        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=Known())

    def listen(self, address: str, channel: Channel) -> str:
        """Relay ``channel`` to the one peer that will connect; returns the endpoint for it."""
        remote = self._socket()
        remote.curve_server = True
        remote.bind(f"tcp://{address}:*")
        endpoint: str = remote.getsockopt_string(zmq.LAST_ENDPOINT)
        self._relays.append(Relay(channel, remote, self._timeout))
        return endpoint

    def connect(self, endpoint: str, server_key: str, channel: Channel) -> Relay:
        """Relay ``channel`` to the peer that listens at ``endpoint``."""
        remote = self._socket()
        remote.curve_serverkey = server_key.encode()
        remote.connect(endpoint)
        relay = Relay(channel, remote, self._timeout)
        self._relays.append(relay)
        return relay

    def close(self) -> None:
        """End every relay whose channel has ended, and let go of all sockets."""
        for relay in self._relays:
            relay.join()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=_LINGER_MS)

    def _socket(self) -> Any:
        remote: Any = self._context.socket(zmq.PAIR)
        remote.curve_publickey = self._keys.public.encode()
        remote.curve_secretkey = self._keys.secret.encode()
        remote.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        remote.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
        remote.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        remote.setsockopt(zmq.SNDHWM, 0)
        return remote


class Relay:
    """Copies frames both ways on a thread of its own until either side ends.

    It also ends where the peer has not come within ``timeout`` seconds; nothing is read from the
    channel before it has.
    """

    def __init__(self, channel: Channel, remote: Any, timeout: float) -> None:
        self._channel = channel
        self._remote = remote
        self._timeout = timeout
        self._monitor = remote.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._thread = threading.Thread(target=self._run, name="ppinfer-relay", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._meet():
                self._copy()
        finally:
            self._channel.close()
            self._remote.disable_monitor()
            self._remote.close(linger=_LINGER_MS)

    def _meet(self) -> bool:
        """Wait for the peer; whether it came before the deadline and before the channel ended."""
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._channel.fileno(), zmq.POLLERR)  # a hang-up, not data
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self._channel.fileno() in ready:
                return False
            if self._monitor in ready:
                event = zmq.utils.monitor.recv_monitor_message(self._monitor)
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return True
        return False

    def _copy(self) -> None:
        poller = zmq.Poller()
        for source in (self._remote, self._monitor, self._channel.fileno()):
            poller.register(source, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._remote in ready and not self._take_remote():
                break
            if self._channel.fileno() in ready and not self._take_local():
                break
            if self._monitor in ready:
                break  # disconnected

    def _take_remote(self) -> bool:
        with contextlib.suppress(zmq.Again):
            while True:
                frame = self._remote.recv(zmq.NOBLOCK)
                if frame == _END:
                    return False
                try:
                    self._channel.send(frame)
                except ChannelClosedError:
                    self._send(_END)
                    return False
        return True

    def _take_local(self) -> bool:
        try:
            return all(self._send(frame) for frame in self._channel.receive_ready())
        except ChannelClosedError:
            self._send(_END)
            return False

    def _send(self, frame: bytes) -> bool:
        """Whether there was a peer to send to: a ZeroMQ send without one would wait for ever."""
        try:
            self._remote.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
