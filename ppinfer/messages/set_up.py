"""How a pipeline comes up: devices, what a step costs there, weights, KV cache."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ppinfer.messages.base import Message


class TensorEntry(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor of a checkpoint lies, found by the driver so that no stage parses a header.

    ``dtype`` is ``F32``, ``F16``, ``BF16`` or a GGUF type such as ``Q4_1``; ``shape`` is row-major
    (outputs first for a matrix). ``rope_heads`` > 0 says that the rows of each of that many heads
    are interleaved as GGUF stores q and k of the Llama family, and must be put back.
    """

    name: str
    file: int
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    rope_heads: int = 0


class StageTensors(msgspec.Struct, frozen=True, array_like=True):
    """The tensors of one stage, by canonical name (see ``models/policy.py``).

    A file named ``memfd:N`` is the descriptor N that the stage inherited. No files and no entries
    with ``dummy`` set means: make them up from the config.
    """

    files: tuple[str, ...]
    entries: tuple[TensorEntry, ...]
    dummy: bool = False


class StageSetup(Message, frozen=True):
    """All a stage needs to take its place; sent once, before any plan."""

    stage: int
    num_stages: int
    first_layer: int
    last_layer: int  # exclusive
    model: bytes  # models.config.ModelConfig as MessagePack
    tensors: StageTensors
    dtype: str  # the arithmetic: fp32, bf16 or fp16
    device: str
    comm: str
    generation: int
    store: str  # "inherited" (a descriptor the launcher passed) or "tcp:HOST:PORT/PREFIX"
    block_size: int
    recv_ahead: int
    send_depth: int  # sends that may be under way before the oldest is awaited
    max_step_tokens: int
    max_sequences: int
    timeout: float  # seconds
    row_invariant: bool = True


class DeviceInfo(msgspec.Struct, frozen=True, array_like=True):
    """A device that a stage could use. ``free_bytes`` is its share where stages share a host.

    ``dtypes`` are those of ``config.DTYPES`` that it takes; fp16 on a CPU is computed in fp32.
    """

    name: str  # as torch names it: "cpu", "cuda:1"
    description: str
    free_bytes: int
    dtypes: tuple[str, ...]


class StageReady(Message, frozen=True):
    """The process is up and torch is imported; ``devices`` lists the CPU first.

    ``software`` names what, beside the device, decides how fast a step is: torch and the kernels.
    """

    stage: int
    pid: int
    version: str
    devices: tuple[DeviceInfo, ...]
    seconds: float  # from the start of the process
    cores: int = 1  # of the host, as far as this process may use them
    threads: int = 1  # its share of them
    local_size: int = 1  # stages on its host
    software: str = ""


class ProfileRequest(Message, frozen=True):
    """Measure what a step of this model costs here, before the model is cut. It may come again."""

    model: bytes  # models.config.ModelConfig as MessagePack
    dtype: str
    device: str
    block_size: int
    threads: int  # on a CPU
    max_rows: int  # most sequences of a decode step
    seconds: float  # about how long it may take


Points: TypeAlias = tuple[tuple[int, float], ...]
"""Seconds at a number of rows, as pairs in ascending order of rows."""


class StepCosts(msgspec.Struct, frozen=True, array_like=True):
    """What the parts of a step took on one stage.

    ``context`` is how many tokens each sequence had in ``decode``; what attention to more of them
    takes is in the last two, in seconds a layer: for each token that a decoding sequence has, and
    for each token of a prompt and each token before it.
    """

    threads: int
    decode: Points  # a decoder layer, a token of each of so many sequences
    prefill: Points  # a decoder layer, so many tokens of one prompt
    head: Points  # norm, head and greedy sampling
    embed: Points
    prepare: Points  # the indices of a decode step, made once a step
    context: int = 0
    decode_context: float = 0.0
    prefill_context: float = 0.0


class ProfileResult(Message, frozen=True):
    stage: int
    costs: StepCosts | None  # None where there is no memory to measure with


class StageLoaded(Message, frozen=True):
    """Weights are in place and the links to the neighbours stand."""

    stage: int
    weight_bytes: int
    peak_rss_bytes: int  # over the whole load
    free_bytes: int
    block_bytes: int  # one KV block on this stage, all its layers
    load_seconds: float
    connect_seconds: float
    note: str = ""  # a sentence for the user, where something is slower than it could be


class CacheSetup(Message, frozen=True):
    num_blocks: int


class CacheReady(Message, frozen=True):
    stage: int
