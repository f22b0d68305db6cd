"""The same script under ``torchrun``: every rank starts its own stage as a child, rank 0 drives.

A rank is an agent and the stage its child, because torch elastic ends the whole group when a rank
dies. Ranks meet in torchrun's store. Control messages travel over ZeroMQ with CURVE keys that are
exchanged there, and are relayed to and from socket pairs, so that driver and stage see what they
see on one host: a stream that ends when the other side does.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import itertools
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from ppinfer.comm.control import Channel
from ppinfer.config import EngineConfig
from ppinfer.errors import ConfigError, StageError
from ppinfer.launch.process import StageProcess, default_threads, spawn_stage
from ppinfer.version import __version__

if TYPE_CHECKING:
    import torch.distributed as dist

    from ppinfer.launch.relay import RelayHub

_engines = itertools.count()
"""Engines of one script are made in the same order on every rank, so their number names them."""


@dataclass(frozen=True, slots=True)
class Rank:
    """What torchrun says of this process, and which of its engines is being made.

    ``meeting`` names the engine in the store: a restarted group finds the store of the attempt
    before, and must not take its words for new ones.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str
    master_port: int
    meeting: str


class _Introduction(msgspec.Struct, frozen=True):
    host: str
    public_key: str
    version: str
    settings: str


class _Answer(msgspec.Struct, frozen=True):
    endpoint: str = ""
    server_key: str = ""
    one_host: bool = False
    refusal: str = ""


def current_rank() -> Rank | None:
    """This process's rank, if torchrun started it as one of several; once for each engine."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" not in environment or int(environment.get("WORLD_SIZE", "1")) < 2:
        return None
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Rank(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment["LOCAL_RANK"]),
        local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
        master_address=environment["MASTER_ADDR"],
        master_port=int(environment["MASTER_PORT"]),
        meeting=f"attempt{attempt}/engine{next(_engines)}",
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

    shares_memory = False

    def __init__(self, rank: Rank, config: EngineConfig) -> None:
        self._rank = rank
        self._config = config
        self._hub: RelayHub | None = None
        self._store: dist.Store | None = None  # where rank 0 keeps it, it ends with this
        self.store = f"tcp:{rank.master_address}:{rank.master_port}/{rank.meeting}"

    def launch(self, *, threads: int | None, model_fd: int | None) -> list[StageProcess]:
        """Raises ``ConfigError`` where the ranks do not agree, ``StageError`` if one is missing."""
        from ppinfer.launch.relay import RelayHub

        self._store = store = _open_store(self._rank, self._config.timeout)
        ranks = range(1, self._rank.world_size)
        stages: list[StageProcess] = []
        try:
            peers = [self._introduction(store, rank) for rank in ranks]
            self._compare(peers)
            one_host = all(peer.host == _host_id() for peer in peers)
            address = "127.0.0.1" if one_host else local_address(self._rank)
            self._hub = RelayHub(self._config.timeout)
            self._hub.allow(peer.public_key for peer in peers)
            stages.append(_spawn_own(self._rank, self._config, model_fd, address))
            for rank in ranks:
                ours, theirs = socket.socketpair()
                stages.append(StageProcess(rank, Channel(ours, self._config.timeout)))
                endpoint = self._hub.listen(address, Channel(theirs, self._config.timeout))
                answer = _Answer(endpoint, self._hub.public_key, one_host)
                store.set(f"answer{rank}", _to_text(answer))
        except BaseException as error:
            with contextlib.suppress(Exception):
                for rank in ranks:  # those that came need not wait for the others
                    refusal = f"Rank 0 could not start: {error}"
                    store.set(f"answer{rank}", _to_text(_Answer(refusal=refusal)))
            for stage in stages:
                stage.kill()
                stage.channel.close()
            self.close()
            raise
        return stages

    def close(self) -> None:
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        self._store = None

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


class Follower:
    """Any other rank: keeps a stage for rank 0 until rank 0 closes its engine."""

    def __init__(self, rank: Rank, config: EngineConfig, model_fd: int | None) -> None:
        from ppinfer.launch.relay import RelayHub

        self._pid = os.getpid()
        store = _open_store(rank, config.timeout)
        hub = RelayHub(config.timeout)
        introduction = _Introduction(_host_id(), hub.public_key, __version__, _digest(config))
        store.set(f"rank{rank.rank}", _to_text(introduction))
        try:
            answer = msgspec.json.decode(store.get(f"answer{rank.rank}"), type=_Answer)
        except RuntimeError as error:
            raise StageError(f"Rank 0 did not answer within {config.timeout:g} s.") from error
        if answer.refusal:
            raise ConfigError(answer.refusal)
        address = "127.0.0.1" if answer.one_host else local_address(rank)
        self._stage = _spawn_own(rank, config, model_fd, address)
        self._hub = hub
        try:
            self._relay = hub.connect(answer.endpoint, answer.server_key, self._stage.channel)
        except BaseException:
            self._stage.kill()
            self._stage.channel.close()
            raise

    def join(self) -> None:
        """Wait until rank 0 closes its engine, or is gone."""
        self._relay.join()

    def close(self) -> None:
        if self._pid != os.getpid():
            return
        self._hub.close()
        if not self._stage.wait(5.0):
            self._stage.kill()


def local_address(rank: Rank) -> str:
    """The address of this host that the others can reach: the one on the way to the master.

    Raises:
        ConfigError: it is loopback, which other hosts cannot reach.
    """
    try:
        target = socket.getaddrinfo(rank.master_address, rank.master_port, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(target[0], socket.SOCK_DGRAM) as probe:
            probe.connect(target[4])
            address = str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"The master address {rank.master_address} cannot be used: {error.strerror}."
        ) from error
    if ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"The master address {rank.master_address} is loopback on its own host, which other "
            "hosts cannot reach; give torchrun an address with --master-addr or --rdzv-endpoint."
        )
    return address


def _spawn_own(
    rank: Rank, config: EngineConfig, model_fd: int | None, address: str
) -> StageProcess:
    return spawn_stage(
        rank.rank,
        local_index=rank.local_rank,
        local_size=rank.local_world_size,
        threads=config.threads or default_threads(rank.local_world_size),
        address=address,
        timeout=config.timeout,
        model_fd=model_fd,
    )


def _open_store(rank: Rank, timeout: float) -> dist.Store:
    """Raises ``StageError`` where nobody answers at the master's address."""
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            rank.master_address,
            rank.master_port,
            # torchrun's agent keeps the store, unless it was told to leave that to rank 0.
            is_master=rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        where = f"{rank.master_address}:{rank.master_port}"
        raise StageError(f"The store at {where} cannot be reached: {error}", stage=0) from error
    return dist.PrefixStore(f"{rank.meeting}/launch", store)


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
