"""The instruction sets that the native kernels are written for, and which of them is at hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma")


@dataclass(frozen=True, slots=True)
class KernelPath:
    """One way to compile the sources.

    ``needs`` are flags of ``/proc/cpuinfo``; without any, every processor will do.
    """

    name: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]


_BF16_FLAGS = (*(f"-m{flag}" for flag in _AVX512), "-mavx512bf16")

PATHS = (
    KernelPath(
        "amx",
        (*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16"),
        (*_BF16_FLAGS, "-mamx-tile", "-mamx-bf16"),
    ),
    KernelPath("avx512bf16", (*_AVX512, "avx512_bf16"), _BF16_FLAGS),
    KernelPath("avx512", _AVX512, tuple(f"-m{flag}" for flag in _AVX512)),
    KernelPath("avx2", ("avx2", "fma"), ("-mavx2", "-mfma")),
    KernelPath("plain", (), ()),
)
"""Fastest first."""


def available() -> list[KernelPath]:
    """The paths that this processor can run, fastest first."""
    flags = cpu_flags()
    return [path for path in PATHS if flags.issuperset(path.needs)]


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets as the kernel names them; empty where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()
