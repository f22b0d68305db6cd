"""What this process can compute on, and how much memory is free there."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from ppinfer.kernels.gpu import device as gpu
from ppinfer.kernels.native import build, library
from ppinfer.messages import DeviceInfo

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_BF16_CAPABILITY = (8, 0)
"""The first CUDA compute capability with bf16 arithmetic."""


def list_devices(local_index: int, local_size: int) -> tuple[DeviceInfo, ...]:
    """The CPU, and the GPU of this stage's index on its host where there is one.

    Stages of one host share its memory, so each may count on an equal part of what is free.
    """
    dtypes = ["fp32", "fp16"]  # fp16 is computed in fp32 here: see engine/settings.py
    if cpu_has_bf16():
        dtypes.append("bf16")
    devices = [DeviceInfo("cpu", cpu_name(), free_host_bytes() // local_size, tuple(dtypes))]
    if torch.cuda.is_available() and local_index < torch.cuda.device_count():
        free, _ = torch.cuda.mem_get_info(local_index)
        name = torch.cuda.get_device_name(local_index)
        devices.append(DeviceInfo(f"cuda:{local_index}", name, free, gpu_dtypes(local_index)))
    return tuple(devices)


def gpu_dtypes(index: int) -> tuple[str, ...]:
    """What the GPU of this index computes in."""
    is_capable = torch.cuda.get_device_capability(index) >= _BF16_CAPABILITY
    return ("fp32", "fp16", "bf16") if is_capable else ("fp32", "fp16")


def take_up(device: torch.device) -> None:
    """Make it this process's own: what names no GPU, kernels among it, then runs there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def free_bytes(device: torch.device, local_size: int) -> int:
    """Bytes that this stage may still use on ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes() // local_size


def free_host_bytes() -> int:
    """Memory that can be had without swapping, within this process's control group."""
    available = _meminfo("MemAvailable")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = min(available, max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass
    return available


def resident_bytes(peak: bool = False) -> int:
    """Resident memory of this process, now or at its highest."""
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def cpu_has_bf16() -> bool:
    """Whether oneDNN has native bf16 arithmetic on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores of this host that this process may use."""
    return len(os.sched_getaffinity(0))


def software() -> str:
    """What, beside the device, decides how fast a step is here."""
    forced = os.environ.get(library.VARIABLE, "any")
    found = f"torch {torch.__version__}, kernels {build.sources_digest()} ({forced})"
    return f"{found}, {gpu.software()}" if torch.cuda.is_available() else found


def _meminfo(name: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
