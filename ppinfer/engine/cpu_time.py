"""Whose processor time it was while something was measured, as Linux says. No torch.

A figure that cannot be had is 0: whoever measures goes on without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOREIGN_CPU = 0.05
"""Share of all cores that others may take before a measurement counts as disturbed."""
REPEAT_ABOVE = float(os.environ.get("PPINFER_FOREIGN_CPU", FOREIGN_CPU))
"""The share above which it is made again: higher where cores are never quiet."""
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


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
