"""The same script under ``torchrun``: every rank starts its own stage as a child, rank 0 drives.

A rank is an agent and the stage its child, because torch elastic ends the whole group when a rank
dies. Ranks meet in torchrun's store. Control messages travel over ZeroMQ with CURVE keys that are
exchanged there, and are relayed to and from socket pairs, so that driver and stage see what they
see on one host: a stream that ends when the other side does.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ppinfer.comm.control import Channel
from ppinfer.config import EngineConfig
from ppinfer.errors import ConfigError, StageError
from ppinfer.launch.process import StageProcess, default_threads, spawn_stage
from ppinfer.version import __version__

if TYPE_CHECKING:
    import torch.distributed as dist

    from ppinfer.launch.relay import KeyPair, Relay

_engines = itertools.count()
"""Engines of one script are made in the same order on every rank, so their number names them."""


@dataclass(frozen=True, slots=True)
class Rank:
    """What torchrun says of this process."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int


class _Introduction(msgspec.Struct, frozen=True):
    host: str
    public_key: str
    version: str
    settings: str


class _Answer(msgspec.Struct, frozen=True):
    endpoint: str = ""
    server_key: str = ""
    refusal: str = ""


def current_rank() -> Rank | None:
    """This process's rank, if torchrun started it as one of several."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", "1")) < 2:
        return None
    return Rank(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment["LOCAL_RANK"]),
        local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
        master_address=environment["MASTER_ADDR"],
        master_port=int(environment["MASTER_PORT"]),
    )


def check_size(rank: Rank, config: EngineConfig) -> None:
    """Raises ``ConfigError`` where pipeline size and number of ranks disagree."""
    if config.pp_size != rank.world_size:
        raise ConfigError(
            f"pp_size is {config.pp_size}, but torchrun started {rank.world_size} ranks; make "
            "them equal, or leave pp_size out."
        )


class TorchrunLauncher:
    """Rank 0: starts its own stage, and takes up the channels to the others'."""

    def __init__(self, rank: Rank, config: EngineConfig) -> None:
        self._rank = rank
        self._config = config
        self._prefix = f"engine{next(_engines)}"
        self._relays: list[Relay] = []
        self._authenticator: Any = None
        self.store = f"tcp:{rank.master_address}:{rank.master_port}/{self._prefix}"

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]:
        """Raises ``ConfigError`` where the ranks do not agree, ``StageError`` if one is missing."""
        from ppinfer.launch.relay import KeyPair, allow_keys

        store = _open_store(self._rank, self._prefix, self._config.timeout)
        keys = KeyPair.generate()
        peers = [self._introduction(store, rank) for rank in range(1, self._rank.world_size)]
        try:
            self._compare(peers)
        except ConfigError as error:
            for rank in range(1, self._rank.world_size):
                store.set(f"answer{rank}", _to_text(_Answer(refusal=str(error))))
            raise
        one_host = all(peer.host == _host_id() for peer in peers)
        address = "127.0.0.1" if one_host else local_address(self._rank)
        self._authenticator = allow_keys([peer.public_key for peer in peers])
        stages = [_spawn_own(self._rank, threads, model_fd, address)]
        for number, _ in enumerate(peers, start=1):
            stages.append(self._connect(store, number, keys, address))
        return stages

    def close(self) -> None:
        for relay in self._relays:
            relay.join()
        self._relays.clear()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None

    def _introduction(self, store: dist.Store, rank: int) -> _Introduction:
        try:
            data = store.get(f"rank{rank}")
        except RuntimeError as error:
            raise StageError(
                f"Rank {rank} did not come within {self._config.timeout:g} s.", stage=rank
            ) from error
        return msgspec.json.decode(data, type=_Introduction)

    def _compare(self, peers: list[_Introduction]) -> None:
        for rank, peer in enumerate(peers, start=1):
            if peer.version != __version__:
                raise ConfigError(
                    f"Rank {rank} runs ppinfer {peer.version}, but rank 0 runs {__version__}; "
                    "install the same version everywhere."
                )
            if peer.settings != _digest(self._config):
                raise ConfigError(
                    f"Rank {rank} was given other settings than rank 0; every rank must make the "
                    "engine with the same ones."
                )

    def _connect(self, store: dist.Store, rank: int, keys: KeyPair, address: str) -> StageProcess:
        from ppinfer.launch.relay import Relay, listen

        ours, theirs = socket.socketpair()
        remote, endpoint = listen(address, keys)
        self._relays.append(Relay(Channel(theirs), remote))
        answer = _Answer(endpoint=endpoint, server_key=keys.public)
        store.set(f"answer{rank}", _to_text(answer))
        return StageProcess(rank, Channel(ours))


class Follower:
    """Any other rank: keeps a stage for rank 0 until rank 0 closes its engine."""

    def __init__(self, rank: Rank, config: EngineConfig, model_fd: int | None) -> None:
        from ppinfer.launch.relay import KeyPair, Relay, connect

        store = _open_store(rank, f"engine{next(_engines)}", config.timeout)
        keys = KeyPair.generate()
        introduction = _Introduction(_host_id(), keys.public, __version__, _digest(config))
        store.set(f"rank{rank.rank}", _to_text(introduction))
        try:
            answer = msgspec.json.decode(store.get(f"answer{rank.rank}"), type=_Answer)
        except RuntimeError as error:
            raise StageError(f"Rank 0 did not answer within {config.timeout:g} s.") from error
        if answer.refusal:
            raise ConfigError(answer.refusal)
        loopback = answer.endpoint.startswith("tcp://127.")
        address = "127.0.0.1" if loopback else local_address(rank)
        self._stage = _spawn_own(rank, config.threads, model_fd, address)
        self._relay = Relay(self._stage.channel, connect(answer.endpoint, keys, answer.server_key))

    def join(self) -> None:
        """Wait until rank 0 closes its engine, or is gone."""
        self._relay.join()

    def close(self) -> None:
        self.join()
        if not self._stage.wait(5.0):
            self._stage.kill()


def local_address(rank: Rank) -> str:
    """The address of this host on the way to the one that the user named as master."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rank.master_address, rank.master_port))
        return str(probe.getsockname()[0])


def _spawn_own(rank: Rank, threads: int | None, model_fd: int | None, address: str) -> StageProcess:
    return spawn_stage(
        rank.rank,
        local_index=rank.local_rank,
        local_size=rank.local_world_size,
        threads=threads or default_threads(rank.local_world_size),
        address=address,
        model_fd=model_fd,
    )


def _open_store(rank: Rank, prefix: str, timeout: float) -> dist.Store:
    import torch.distributed as dist

    store = dist.TCPStore(
        rank.master_address,
        rank.master_port,
        # torchrun's agent keeps the store, unless it was told to leave that to rank 0.
        is_master=rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"ppinfer/{prefix}/launch", store)


def _to_text(message: _Introduction | _Answer) -> str:
    return msgspec.json.encode(message).decode()


def _digest(config: EngineConfig) -> str:
    return hashlib.blake2b(repr(config).encode(), digest_size=16).hexdigest()


def _host_id() -> str:
    """Names this machine, also where containers share a host name."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"
