"""Weights made up from a name and a shape, for measuring models that nobody downloaded.

The same tensor has the same values on every partition and device. Matrices repeat one random run of
a length that shares no factor with a row; they are scaled so that activations keep their size.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_RUN = 1_048_573  # the largest prime below 2**20


def fill(name: str, out: Tensor) -> None:
    """Fill ``out`` with the made-up values of the canonical tensor ``name``, in place."""
    if name.endswith("norm.weight"):
        out.fill_(1.0)
        return
    inputs = out.shape[-1] if out.dim() > 1 else 1024
    bound = math.sqrt(3.0 / inputs)  # of a uniform distribution with variance 1 / inputs
    generator = torch.Generator().manual_seed(_seed(name))
    run = torch.empty(min(_RUN, out.numel())).uniform_(-bound, bound, generator=generator)
    run = run.to(out.dtype).to(out.device)
    flat = out.view(-1)
    for start in range(0, len(flat), len(run)):
        part = flat[start : start + len(run)]
        part.copy_(run[: len(part)])


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
