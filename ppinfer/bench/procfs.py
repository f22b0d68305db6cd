"""What Linux says of processes and their memory. No torch.

A figure that cannot be had is 0: a benchmark goes on without it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_RESET_PEAK = "5"  # see clear_refs in proc(5)


def peak_bytes(pid: int) -> int:
    """Highest resident memory since the process began, or since ``reset_peak``."""
    return _status_bytes(pid, "VmHWM:")


def reset_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def available_bytes() -> int:
    """Memory that can be had without swapping, within this process's control group."""
    found = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no limit reads "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found = min(found, max(limit - used, 0))
    return found


def cores() -> int:
    return len(os.sched_getaffinity(0))


def first_to_be_killed() -> None:
    """Ask the kernel to end this process and its children before any other if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _status_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
