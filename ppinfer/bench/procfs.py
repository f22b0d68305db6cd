"""What Linux says of processes: processor time and memory. No torch.

A figure that cannot be had is 0: a benchmark goes on without it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOREIGN_CPU = 0.05
"""Share of all cores that others may take before a measurement counts as disturbed."""
_TICKS = os.sysconf("SC_CLK_TCK")
_RESET_PEAK = "5"  # see clear_refs in proc(5)


def peak_bytes(pid: int) -> int:
    """Highest resident memory since the process began, or since ``reset_peak``."""
    return _status_bytes(pid, "VmHWM:")


def reset_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


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


@dataclass(frozen=True)
class Reading:
    """Processor time up to one moment: of some processes, of all, and stolen by the hypervisor."""

    at: float
    own: float
    all: float
    stolen: float

    @classmethod
    def now(cls, pids: Sequence[int]) -> Reading:
        busy, stolen = _machine_seconds()
        return cls(time.perf_counter(), sum(map(cpu_seconds, pids)), busy, stolen)

    def shares_since(self, before: Reading) -> tuple[float, float]:
        """Of all cores: what other processes took, and what was stolen."""
        whole = max((self.at - before.at) * (os.cpu_count() or 1), 1e-9)
        others = (self.all - before.all) - (self.own - before.own)
        return max(others, 0.0) / whole, max(self.stolen - before.stolen, 0.0) / whole


def _machine_seconds() -> tuple[float, float]:
    """Seconds that all cores were busy with processes here, and were not given to this machine."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq) / _TICKS, steal / _TICKS


def _status_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
