"""The greatest element of each row: what a greedy sampler draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ppinfer.kernels.native import library


def argmax_rows(x: Tensor) -> list[int]:
    """The index of the greatest element of each row of ``x`` ``(R, V)``, of equal ones the first.

    A row with a NaN gives -1.
    """
    kernels = library.active() if x.device.type == "cpu" else None
    if kernels is not None and x.dtype in (torch.float32, torch.bfloat16):
        x = x.contiguous()
        out = torch.empty(x.shape[0], dtype=torch.int32)
        kernels.argmax(
            int(x.dtype == torch.bfloat16), x.data_ptr(), out.data_ptr(), *x.shape,
            torch.get_num_threads(),
        )  # fmt: skip
    else:
        out = x.argmax(dim=-1)
        # A NaN counts as the highest.
        out = torch.where(x.gather(1, out[:, None]).isnan()[:, 0], -1, out)
    found: list[int] = out.tolist()
    return found
