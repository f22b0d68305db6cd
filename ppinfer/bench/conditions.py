"""The circumstances under which something was measured, as plain data. No torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppinfer.bench.procfs import cores
from ppinfer.version import __version__

_PACKAGES = ("torch", "transformers", "numpy")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


def conditions() -> dict[str, Any]:
    """Machine, versions, date and load of now."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processor = _processor()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor.get("model name", platform.machine()),
        "instructions": [name for name in _FLAGS if name in processor.get("flags", "").split()],
        "cores": cores(),
        "memory_gb": round(pages / 1e9, 1),
        "gpu": Path("/proc/driver/nvidia").exists(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "ppinfer": __version__,
        **{name: _version(name) for name in _PACKAGES},
        "load": [round(value, 2) for value in os.getloadavg()],
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def in_words(found: dict[str, Any]) -> str:
    """One line for people."""
    flags = ", ".join(found["instructions"])
    parts = [
        f"{found['cores']} cores of {found['processor']}" + (f" ({flags})" if flags else ""),
        f"{found['memory_gb']:.0f} GB",
        "a GPU that was not used" if found["gpu"] else "no GPU",
        f"ppinfer {found['ppinfer']}",
        *(f"{name} {found[name]}" for name in _PACKAGES if found[name]),
        f"Python {found['python']}",
        f"load {found['load'][0]:.1f} at the start",
        found["date"],
    ]
    parts += [f"{name}={value}" for name, value in found["environment"].items()]
    return ", ".join(parts) + "."


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _processor() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found
