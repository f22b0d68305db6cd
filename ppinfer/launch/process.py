"""One stage process and the driver's end of its control channel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from ppinfer.comm.control import Channel
from ppinfer.comm.ring_end import RingEnd

_EXIT_SECONDS = 2.0
"""How long a process whose channel has closed is given to have an exit status."""


class StageProcess:
    """A stage as the driver sees it: a channel, and where it runs on this host, its process."""

    def __init__(
        self, stage: int, channel: Channel, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.stage = stage
        self.channel = channel
        self._process = process

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def describe_end(self) -> str:
        """How the process ended, in words; to be asked once its channel has closed."""
        if self._process is None:
            return "its host closed the connection"
        try:
            code = self._process.wait(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its control channel"
        if code < 0:
            return f"it was killed by {_signal_name(-code)}"
        return f"it exited with status {code}"

    def wait(self, timeout: float) -> bool:
        """Whether the process has ended within ``timeout`` seconds."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout=max(timeout, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def spawn_stage(
    stage: int,
    *,
    local_index: int,
    local_size: int,
    threads: int,
    address: str,
    timeout: float,
    store_fd: int | None = None,
    model_fd: int | None = None,
    rings: tuple[RingEnd, RingEnd] | None = None,
) -> StageProcess:
    """Start one stage process on this host; its data sockets bind to ``address``.

    ``rings`` are its inbound and outbound end of the shared-memory links, on one host.

    ``timeout`` bounds, in seconds, how long a message to it may wait to be taken.

    It gets a session of its own, so that Ctrl-C reaches the driver alone, and ends by itself when
    the other end of its control channel closes, however the driver died.
    """
    ours, theirs = socket.socketpair()
    # -P: what lies in the current folder is not imported in place of a library.
    command = [sys.executable, "-P", "-m", "ppinfer.stage.worker"]
    command += ["--stage", str(stage), "--control-fd", str(theirs.fileno())]
    command += ["--local-index", str(local_index), "--local-size", str(local_size)]
    command += ["--address", address, "--started", repr(time.time())]
    inherited = [theirs.fileno()]
    for option, fd in (("--store-fd", store_fd), ("--model-fd", model_fd)):
        if fd is not None:
            command += [option, str(fd)]
            inherited.append(fd)
    if rings is not None:
        fds = [fd for end in rings for fd in end.fds]
        command += ["--ring-fds", *map(str, fds)]
        inherited += fds
    with theirs:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # that of the script is for its own data
                pass_fds=inherited,
                env=_environment(threads),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return StageProcess(stage, Channel(ours, timeout), process)


def default_threads(local_size: int) -> int:
    """Cores of this host divided over its stages, at least one each."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def _environment(threads: int) -> dict[str, str]:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    if "OMP_WAIT_POLICY" not in environment:
        # A worker thread spins for about 0.1 ms after its part: long enough to be there for the
        # next operation, short enough not to be in the way of the stage that works next.
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    # On CUDA, a wait for a neighbour then really waits, and fails by name instead of by abort.
    environment.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    # What torch's C++ warns of is how we use NCCL: groups of two, and no farewell.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The stage must import the same ppinfer as its driver, wherever the script stands.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
