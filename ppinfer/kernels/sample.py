"""Draws tokens in C++ over threads, from logits as they are, or says how likely given ones are
(``src/sample.h``).

What is drawn is defined by ``stage/draw.py``; this differs where the random number falls within
rounding of the boundary between two tokens. The same on every path and number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import (
    Array,
    Structure,
    addressof,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_void_p,
    cast,
)

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppinfer.kernels.native import library
from ppinfer.sampling import MAX_LOGPROBS


class Settings(Structure):
    """``Settings`` of ``src/sample.h``: how one row is drawn from.

    Whoever fills in a pointer keeps alive what it points to.
    """

    _fields_ = [
        *((name, c_int64) for name in ("seed", "position", "top_k")),
        *((name, c_double) for name in ("temperature", "top_p", "min_p")),
        *((name, c_void_p) for name in ("seen", "counts", "biased", "biases", "forbidden", "mask")),
        *((name, c_int32) for name in ("num_seen", "num_biased", "num_forbidden")),
        *((name, c_float) for name in ("repetition", "presence", "frequency")),
        *((name, c_int32) for name in ("row", "highest", "logprobs", "given")),
    ]


class Drawn(Structure):
    """``Drawn`` of ``src/sample.h``; log-probabilities where they were asked for."""

    _fields_ = [
        ("token", c_int32),
        ("num_top", c_int32),
        ("logprob", c_double),
        ("top_logprobs", c_double * MAX_LOGPROBS),
        ("top_ids", c_int32 * MAX_LOGPROBS),
    ]


def address_of(data: bytes) -> int | None:
    """Where bytes lie, for a pointer of ``Settings``; ``None`` where there are none."""
    return cast(c_char_p(data), c_void_p).value if data else None


def usable_kernels(logits: Tensor) -> library.Kernels | None:
    """The kernels where they can draw from logits of this kind."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.bfloat16):
        return None
    return library.active()


def draw_rows(
    kernels: library.Kernels, logits: Tensor, settings: Sequence[Settings]
) -> Array[Drawn]:
    """One draw for each of ``settings``, from the row of ``logits`` ``(rows, vocab)`` it names."""
    asked = (Settings * len(settings))(*settings)
    drawn = (Drawn * len(settings))()
    _sample(kernels, logits, addressof(asked), addressof(drawn), len(settings))
    return drawn


def look_up(
    kernels: library.Kernels,
    logits: Tensor,
    tokens: Sequence[int],
    highest: Sequence[int],
    tops: Sequence[int],
) -> npt.NDArray[np.void]:
    """How likely ``logits`` ``(rows, vocab)`` make a token each, and the ``tops`` likeliest.

    Args:
        highest: the greatest element of each row.

    Returns:
        ``Drawn`` structs, one a row.
    """
    asked = np.zeros(len(tokens), np.dtype(Settings))
    drawn = np.empty(len(tokens), np.dtype(Drawn))
    asked["row"] = np.arange(len(tokens))
    asked["given"], asked["highest"], asked["logprobs"] = tokens, highest, tops
    _sample(kernels, logits, asked.ctypes.data, drawn.ctypes.data, len(tokens))
    return drawn


def _sample(
    kernels: library.Kernels, logits: Tensor, settings: int, drawn: int, count: int
) -> None:
    """The arguments ``settings`` and ``drawn`` are addresses."""
    logits = logits.contiguous()
    kernels.sample(
        int(logits.dtype == torch.bfloat16), logits.data_ptr(), settings, drawn, count,
        logits.shape[1], torch.get_num_threads(),
    )  # fmt: skip
