"""A Hugging Face model object as a file in memory, so that stages load it like any checkpoint.

The file is in safetensors format and written tensor by tensor: beside the model itself there is one
copy, which stages read their share of. Tensors that the model ties are written once. It is sealed
before anyone else sees it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppinfer.errors import CheckpointError
from ppinfer.weights.checkpoint import Checkpoint
from ppinfer.weights.safetensors import read_open_directory

if TYPE_CHECKING:
    from torch import Tensor

_PIECE_BYTES = 16 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def write_model(model: Any) -> tuple[int, Checkpoint]:
    """Copy the weights of a ``transformers`` model into memory.

    Returns a descriptor, which the caller closes, and its checkpoint, whose one file is named
    ``memfd:N`` after that descriptor.

    Raises:
        CheckpointError: the object is no such model, or has tensors that cannot be stored.
    """
    config, state = _parts(model)
    header, tensors = _layout(state)
    try:
        fd = os.memfd_create("ppinfer-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise CheckpointError(f"No file in memory can be made: {error.strerror}.") from error
    try:
        _write(fd, len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            _write_tensor(fd, tensor)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        directory = read_open_directory(fd, "the given model")
    except BaseException:
        os.close(fd)
        raise
    checkpoint = Checkpoint(
        source="the given model", config=config, files=(f"memfd:{fd}",), tensors=directory
    )
    return fd, checkpoint


def _parts(model: Any) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    try:
        config, state = model.config.to_dict(), model.state_dict()
    except AttributeError:
        raise CheckpointError(
            f"model is a {type(model).__name__}; give a path, a hub id, or a Hugging Face model."
        ) from None
    if not config.get("architectures"):
        config["architectures"] = [type(model).__name__]
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is not None:
        config["eos_token_id"] = eos
    config["dtype"] = str(model.dtype)
    # What counts are the tensors, and quantised ones are refused by their type. A model that was
    # read from a GGUF file holds plain ones, though its config still names the quantisation.
    config.pop("quantization_config", None)
    return config, state


def _layout(state: Mapping[str, Tensor]) -> tuple[bytes, list[Tensor]]:
    """The header, padded to 8 bytes, and the tensors in file order; aliases share their bytes."""
    names = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    table: dict[str, dict[str, Any]] = {}
    tensors: list[Tensor] = []
    written: set[tuple[int, tuple[int, ...]]] = set()
    offset = 0
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise CheckpointError(f"The given model has no values for {name} (it is on 'meta').")
        if str(tensor.dtype) not in names:
            raise CheckpointError(f"The given model stores {name} as {tensor.dtype}.")
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if identity in written:
            continue  # tied to a tensor that is there already; the config says so too
        written.add(identity)
        end = offset + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        tensors.append(tensor)
        offset = end
    header = json.dumps(table).encode()
    return header + b" " * (-len(header) % 8), tensors


def _write_tensor(fd: int, tensor: Tensor) -> None:
    import torch

    flat = tensor.detach().reshape(-1)
    step = _PIECE_BYTES // flat.element_size()
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step].cpu().contiguous()
        _write(fd, piece.view(torch.uint8).numpy())


def _write(fd: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError as error:
            raise CheckpointError(f"The model does not fit in memory: {error.strerror}.") from error
