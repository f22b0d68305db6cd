"""Programs that use ppinfer, run from outside, and proof that they leave nothing running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

_MARK = "PPINFER_TEST_MARK"


@dataclass(frozen=True)
class Marked:
    """An environment that every descendant of a program inherits, so that all can be found."""

    mark: str

    @classmethod
    def new(cls) -> Marked:
        return cls(uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {_MARK: self.mark, "HF_HUB_OFFLINE": "1"}

    def processes(self) -> list[int]:
        """Ids of living processes with the mark, this one aside."""
        wanted = f"{_MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def assert_all_gone(self, within: float = 30.0) -> None:
        deadline = time.monotonic() + within
        while self.processes():
            assert time.monotonic() < deadline, f"still running: {self.processes()}"
            time.sleep(0.05)


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    err: str


def run_python(code: str, *arguments: str, stdin: str = "", timeout: float = 240) -> Finished:
    """Run a program to its end; nothing it started may outlive it by more than a moment."""
    return _run([sys.executable, "-c", code, *arguments], stdin, timeout)


def run_cli(*arguments: str, stdin: str = "", timeout: float = 240) -> Finished:
    """Run the ``ppinfer`` command likewise."""
    return _run([sys.executable, "-m", "ppinfer.cli", *arguments], stdin, timeout)


def _run(command: list[str], stdin: str, timeout: float) -> Finished:
    marked = Marked.new()
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=marked.environment,
        check=False,
    )
    marked.assert_all_gone()
    return Finished(done.returncode, done.stdout, done.stderr)


def is_running(pid: int | None) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
