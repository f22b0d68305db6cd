"""Which native kernels this process uses, if any, and how they are called.

``active()`` is ``None`` where stages compute in plain PyTorch; ``fallback_reason()`` then says why,
for the user. The environment variable ``PPINFER_KERNELS`` forces a path: a name of ``paths.PATHS``,
or ``torch``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_long, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ppinfer.errors import ConfigError
from ppinfer.kernels.native import build, paths

VARIABLE = "PPINFER_KERNELS"

MAX_HEAD_DIM = 256
"""``MAX_DIM`` of ``src/softmax.h``."""


class StepData(Structure):
    """``Step`` of ``src/step.h``."""

    _fields_ = [
        *((name, c_int32) for name in (
            "num_seqs", "num_tokens", "block_size", "block_shift", "kv_heads", "group", "head_dim",
            "unused",
        )),
        *((name, c_void_p) for name in ("starts", "lengths", "offsets", "tables", "table_starts")),
    ]  # fmt: skip


class LayerData(Structure):
    """``Layer`` of ``src/step.h``."""

    _fields_ = [
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("eps", c_float),
        ("window", c_int32),
    ]


class ProductData(Structure):
    """``Product`` of ``src/layers.h``."""

    _fields_ = [("panels", c_void_p), ("bias", c_void_p)]


class DecoderLayerData(Structure):
    """``DecoderLayer`` of ``src/layers.h``."""

    _fields_ = [
        ("attn_norm", c_void_p),
        ("mlp_norm", c_void_p),
        *((name, ProductData) for name in ("qkv", "out", "gate_up", "down")),
        ("k_pool", c_void_p),
        ("v_pool", c_void_p),
        ("attention", LayerData),
        ("eps", c_float),
        ("unused", c_int32),
    ]


class SizesData(Structure):
    """``Sizes`` of ``src/layers.h``."""

    _fields_ = [("hidden", c_int32), ("inner", c_int32)]


class ScratchpadData(Structure):
    """``Scratchpad`` of ``src/layers.h``."""

    _fields_ = [
        (name, c_void_p) for name in ("normed", "qkv", "mixed", "added", "gate_up", "gated")
    ]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The entry points of ``src/kernels.cpp``; pointers are integers, 0 where there is nothing.

    The first argument of most says whether elements are bf16 (else fp32), the last how many threads
    may work. ``linear`` has the matrix products there are, by dtype: fp32 on every path but
    ``plain``, bf16 on ``amx`` and ``avx512bf16``; ``layers`` is for dtypes that have one.
    """

    path: str
    file: Path
    attention: Any
    norm: Any
    gate: Any
    argmax: Any
    sample: Any
    read: Any
    linear: dict[torch.dtype, Any]
    layers: Any


@dataclass(frozen=True, slots=True)
class Choice:
    kernels: Kernels | None
    reason: str | None
    """Why there are none, one sentence; ``None`` where none were wanted."""


def active() -> Kernels | None:
    """The kernels of this process, built on first use."""
    return choice().kernels


def fallback_reason() -> str | None:
    """Why stages on this CPU compute in plain PyTorch although nobody asked for it."""
    return choice().reason


def active_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernels | None:
    """The kernels where they can compute attention of this kind."""
    if (
        device.type != "cpu"
        or dtype not in (torch.float32, torch.bfloat16)
        or head_dim > MAX_HEAD_DIM
        or head_dim % 2
    ):
        return None
    return active()


def is_torch_wanted() -> bool:
    """Whether the environment asks for plain PyTorch."""
    return os.environ.get(VARIABLE) == "torch"


@cache
def choice() -> Choice:
    """What this process uses; asked once.

    Raises:
        ConfigError: the environment variable names a path that is unknown or cannot be had.
    """
    if is_torch_wanted():
        return Choice(None, None)
    wanted = os.environ.get(VARIABLE) or None
    known = {path.name: path for path in paths.PATHS}
    candidates = paths.available()
    if wanted is not None:
        if wanted not in known:
            names = ", ".join([*known, "torch"])
            raise ConfigError(f"{VARIABLE} is {wanted!r}; it may be one of {names}.")
        if known[wanted] not in candidates:
            raise ConfigError(f"{VARIABLE} is {wanted!r}, which this processor cannot run.")
        candidates = [known[wanted]]
    why = ""
    for path in candidates:  # an old compiler may not know the newest instructions
        try:
            return Choice(load(path), None)
        except build.BuildError as error:
            why = why or str(error)
    if wanted is not None:
        raise ConfigError(f"{VARIABLE} is {wanted!r}, but {why}.")
    return Choice(None, f"The native kernels could not be built: {why}.")


def load(path: paths.KernelPath) -> Kernels:
    """The kernels of one path, compiled if need be.

    Raises:
        BuildError: they cannot be had.
    """
    file = build.library_file(path)
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise build.BuildError(f"they could not be loaded ({error})") from error
    pointer, integer = c_void_p, c_int32
    attention, norm, gate = library.ppinfer_attention, library.ppinfer_norm, library.ppinfer_gate
    attention.argtypes = [
        integer, POINTER(StepData), POINTER(LayerData), pointer, pointer, pointer, c_long,
        *([pointer] * 5), integer,
    ]  # fmt: skip
    norm.argtypes = [integer, *([pointer] * 4), c_long, integer, c_float, integer]
    gate.argtypes = [integer, pointer, pointer, c_long, integer, integer]
    argmax = library.ppinfer_argmax
    argmax.argtypes = [integer, pointer, pointer, c_long, c_long, integer]
    sample = library.ppinfer_sample
    sample.argtypes = [integer, pointer, pointer, pointer, c_long, c_long, integer]
    for function in (attention, norm, gate, argmax, sample):
        function.restype = None
    read = library.ppinfer_read
    read.argtypes, read.restype = [pointer, c_long, integer], c_float
    products = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        product = getattr(library, f"ppinfer_linear_{name}", None)
        if product is not None:
            product.argtypes = [*([pointer] * 4), *([c_long] * 3), integer]
            product.restype = None
            products[dtype] = product
    layers = getattr(library, "ppinfer_layers", None)
    if layers is not None:
        layers.argtypes = [
            integer, POINTER(StepData), POINTER(DecoderLayerData), integer, POINTER(SizesData),
            POINTER(ScratchpadData), *([pointer] * 3), integer,
        ]  # fmt: skip
        layers.restype = None
    if not library.ppinfer_begin():
        raise build.BuildError(f"the operating system does not allow {path.name}")
    return Kernels(path.name, file, attention, norm, gate, argmax, sample, read, products, layers)
