"""GGUF's quantised types as numbers: a thin layer over the ``gguf`` package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def dequantize(rows: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Rows of bytes of a GGUF type such as ``Q4_1`` to rows of fp32."""
    import gguf  # only a stage that reads quantised tensors pays for it

    # As one long row: the package works through 16 rows at a time, which costs more than the work.
    flat: Any = gguf.quants.dequantize(rows.reshape(1, -1), gguf.GGMLQuantizationType[dtype])
    values: npt.NDArray[np.float32] = flat.reshape(len(rows), -1)
    return values
