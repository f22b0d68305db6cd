"""Whether a device can run these kernels, and what they must fit in there."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ppinfer.kernels.native.build import digest_of
from ppinfer.kernels.native.library import VARIABLE, is_torch_wanted

_LEAST_CAPABILITY = (8, 0)
"""What Triton supports of NVIDIA's."""

_UNLIMITED = 1 << 30


def usable(device: torch.device) -> bool:
    return device.type == "cuda" and why_not(device) == ""


@cache
def why_not(device: torch.device) -> str:
    """Why a GPU computes in plain PyTorch; empty where it need not."""
    if is_torch_wanted():
        return f"{VARIABLE} asks for it."
    if torch.version.cuda is None:
        return "the kernels were written for CUDA, and this torch was built for something else."
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return f"Triton needs a GPU of compute capability {_LEAST_CAPABILITY[0]}.0 or above."
    if find_spec("triton") is None:
        return "Triton is missing: pip install triton."
    try:
        from ppinfer.kernels.gpu import rows

        x = torch.ones((2, 16), device=device)
        rows.norm(x, None, x[0], 1e-5).tolist()
    except Exception as error:  # whatever a compiler on an unknown machine may raise
        words = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton could not compile a kernel: {words[0]}"
    return ""


def why_slow(device: torch.device) -> str:
    """A sentence for who did not ask for plain PyTorch, where a GPU computes in it; else empty."""
    reason = "" if is_torch_wanted() else why_not(device)
    return reason and f"Stages on a GPU compute in plain PyTorch, several times slower: {reason}"


def software() -> str:
    """What decides how fast these kernels are: their sources, and Triton."""
    digest = digest_of(Path(__file__).parent.glob("*.py"))
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return f"GPU kernels {digest}, triton {triton}"


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that one program may have of a processor's shared memory."""
    if device.type != "cuda":
        return _UNLIMITED
    properties: Any = torch.cuda.get_device_properties(device)  # typed in part
    return int(properties.shared_memory_per_block_optin)


def stages_of(bytes_a_stage: int, most: int, device: torch.device) -> int:
    """How many loads of so many bytes may be under way at once: 1 to ``most``."""
    return max(1, min(most, int(shared_memory(device) * 0.95) // bytes_a_stage))
