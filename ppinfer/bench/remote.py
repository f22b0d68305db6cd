"""The other end of a worker: starts it, asks it, and leaves nothing of it behind. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ppinfer.errors import PPInferError

_CLOSE_SECONDS = 10.0
_CHUNK = 1 << 16


class WorkerFailed(PPInferError):  # noqa: N818 - said of a worker
    """A worker could not do what it was asked. ``status`` is oom, timeout or failed."""

    def __init__(self, message: str, status: str = "failed") -> None:
        super().__init__(message)
        self.status = status


class Worker:
    """One worker process; a context manager.

    Left by an exception, Ctrl-C among them, it is killed at once; otherwise it may end by itself.
    It has a session of its own, so that a terminal's Ctrl-C does not reach it first.
    """

    def __init__(
        self, kind: str, *, memory_limit: int = 0, threads: int | None = None,
        pass_fds: Sequence[int] = (), environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name = kind
        command = [sys.executable, "-P", "-m", "ppinfer.bench.worker", kind]
        if memory_limit:
            command += ["--memory-limit", str(memory_limit)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _reap
        self._buffer = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads) | dict(environment or {}),
            pass_fds=pass_fds,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, timeout: float, **values: Any) -> Any:
        """The answer to one request.

        Raises:
            WorkerFailed: it refused, ended, or took longer than ``timeout`` seconds; after the
                last two it is of no further use.
        """
        self.send(do, **values)
        return self.receive(timeout)

    def send(self, do: str, **values: Any) -> None:
        """Ask without waiting; ``receive`` has the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self, timeout: float) -> Any:
        answer = json.loads(self._read_line(timeout))
        if "error" in answer:
            raise WorkerFailed(answer["error"], "oom" if answer["oom"] else "failed")
        return answer["ok"]

    def close(self) -> None:
        """End its input and wait for it; kill it if it stays."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Its group too; stages of a pipeline have groups of their own, and end when it does."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _read_line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise WorkerFailed(f"no answer within {timeout:.0f} s", "timeout")
            data = os.read(fd, _CHUNK)
            if not data:
                raise self._ended()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> WorkerFailed:
        """Why the process is gone, as far as can be known."""
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        if code == -signal.SIGKILL:
            return WorkerFailed("it was killed, as the kernel does when memory runs out", "oom")
        if code < 0:
            return WorkerFailed(f"it was ended by {signal.Signals(-code).name}; {last}")
        return WorkerFailed(f"it ended with status {code}: {last}")


def _environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # The worker must import the same ppinfer, wherever the command was given.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["HF_HUB_OFFLINE"] = environment.get("HF_HUB_OFFLINE", "1")
    return environment
