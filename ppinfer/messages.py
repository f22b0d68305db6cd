"""What driver and stages say to each other.

Every message is a msgspec struct, sent as MessagePack with its tag first; arrays, not maps, so a
field may be appended with a default but never moved. Nothing here is ever pickled.

What comes by the hundred a step is hidden from Python's garbage collector (``gc=False``), which
would otherwise cost more than all else: plain data has no cycles.

    driver -> stage   ProfileRequest, StageSetup, CacheSetup, StepPlan, StatsRequest, TraceRequest,
                      Shutdown
    stage -> driver   StageReady, ProfileResult, StageLoaded, CacheReady, StepResult, StageStats,
                      StageTrace, StageFailure
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ppinfer.sampling import SamplingParams


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of everything that travels on a control channel."""


# ---------------------------------------------------------------- set-up


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
    """What the parts of a step took on one stage."""

    threads: int
    decode: Points  # a decoder layer, a token of each of so many sequences
    prefill: Points  # a decoder layer, so many tokens of one prompt
    head: Points  # norm, head and greedy sampling
    embed: Points
    prepare: Points  # the indices of a decode step, made once a step


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


# ---------------------------------------------------------------- steps


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's immutable part, sent once with its first step.

    ``history`` holds the prompt's tokens where penalties need them, and is empty otherwise.
    """

    seq_id: int
    prompt_len: int
    params: SamplingParams
    stop_ids: tuple[int, ...] = ()
    history: tuple[int, ...] = ()


PENDING = -1
"""In a plan: the token that the sequence's latest step before this one draws.

Plans run ahead of results. The last stage sends what it drew straight to the first one, which puts
it in this place.
"""


class SequenceStep(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some tokens of one sequence: a prompt, a chunk of one, or a single decoded token.

    ``tokens[i]`` stands at position ``start + i``, a single one may be ``PENDING``; ``new_blocks``
    are appended to the sequence's block table before the step; ``sample`` asks for the token after
    the last one.
    """

    seq_id: int
    start: int
    tokens: list[int]
    new_blocks: list[int]
    sample: bool


class StepPlan(Message, frozen=True):
    """One step of one micro-batch, the same for every stage.

    ``ended`` names sequences whose state a stage may forget, before anything else is done.
    ``step_id`` counts from 0 without gaps. ``threads`` is how many CPU threads each stage computes
    the step with; 0 leaves what it was started with.
    """

    step_id: int
    slot: int
    ended: list[int]
    new: list[NewSequence]
    steps: list[SequenceStep]
    threads: int = 0

    @property
    def num_tokens(self) -> int:
        return sum([len(step.tokens) for step in self.steps])

    @property
    def sampled(self) -> list[int]:
        """The sequences that get a token, in the plan's order."""
        return [step.seq_id for step in self.steps if step.sample]


class SampledToken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``top_ids`` and ``top_logprobs`` are parallel, likeliest first, where they were asked for.

    They are tuples because empty ones cost nothing.
    """

    seq_id: int
    token: int
    logprob: float | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class StepResult(Message, frozen=True):
    """What the last stage drew in one step, in the plan's order."""

    step_id: int
    tokens: list[SampledToken]


# ---------------------------------------------------------------- accounting and end


class StatsRequest(Message, frozen=True):
    pass


class StageStats(Message, frozen=True):
    """Seconds since the cache was set up; the parts sum to ``wall``."""

    stage: int
    steps: int
    tokens: int
    wall: float
    compute: float
    sample: float
    wait_plan: float
    wait_input: float
    send: float
    bytes_sent: int
    rss_bytes: int
    prepare: float = 0.0


class TraceRequest(Message, frozen=True):
    """Begin to record spans, or end it; a stage answers either with a ``StageTrace``."""

    on: bool


class StageTrace(Message, frozen=True):
    """``now`` is the stage's clock when it answered; the rest is a ``trace.clock.Recording``,
    empty where the recording only begins."""

    stage: int
    now: int  # nanoseconds, monotonic
    start: int = 0
    spans: bytes = b""
    dropped: int = 0


class StageFailure(Message, frozen=True):
    """The stage cannot go on. ``kind`` names an exception of ``ppinfer.errors``.

    ``blamed`` is the stage at fault: often a neighbour that this one waited for in vain.
    """

    stage: int
    kind: str
    message: str
    blamed: int


class Shutdown(Message, frozen=True):
    pass


ToStage: TypeAlias = (
    ProfileRequest | StageSetup | CacheSetup | StepPlan | StatsRequest | TraceRequest | Shutdown
)
ToDriver: TypeAlias = (
    StageReady
    | ProfileResult
    | StageLoaded
    | CacheReady
    | StepResult
    | StageStats
    | StageTrace
    | StageFailure
)

_encoder = msgspec.msgpack.Encoder()
_to_stage: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)
_to_driver: msgspec.msgpack.Decoder[ToDriver] = msgspec.msgpack.Decoder(ToDriver)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_to_stage(data: bytes | bytearray | memoryview) -> ToStage:
    """Raises ``msgspec.DecodeError`` where the bytes are no message of the driver."""
    return _to_stage.decode(data)


def decode_to_driver(data: bytes | bytearray | memoryview) -> ToDriver:
    """Raises ``msgspec.DecodeError`` where the bytes are no message of a stage."""
    return _to_driver.decode(data)
