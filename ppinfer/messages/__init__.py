"""What driver and stages say to each other.

Every message is a msgspec struct, sent as MessagePack with its tag first; arrays, not maps, so a
field may be appended with a default but never moved. Nothing here is ever pickled.

    driver -> stage   ProfileRequest, StageSetup, CacheSetup, StepPlan, StatsRequest, TraceRequest,
                      Shutdown
    stage -> driver   StageReady, ProfileResult, StageLoaded, CacheReady, StepResult, StageStats,
                      StageTrace, StageFailure
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ppinfer.messages.accounts import (
    Shutdown,
    StageFailure,
    StageStats,
    StageTrace,
    StatsRequest,
    TraceRequest,
)
from ppinfer.messages.base import Message
from ppinfer.messages.set_up import (
    CacheReady,
    CacheSetup,
    DeviceInfo,
    Points,
    ProfileRequest,
    ProfileResult,
    StageLoaded,
    StageReady,
    StageSetup,
    StageTensors,
    StepCosts,
    TensorEntry,
)
from ppinfer.messages.steps import (
    PENDING,
    NewSequence,
    PromptLogprobs,
    SampledToken,
    SequenceStep,
    StepPlan,
    StepResult,
)

__all__ = [
    "PENDING",
    "CacheReady",
    "CacheSetup",
    "DeviceInfo",
    "Message",
    "NewSequence",
    "Points",
    "ProfileRequest",
    "ProfileResult",
    "PromptLogprobs",
    "SampledToken",
    "SequenceStep",
    "Shutdown",
    "StageFailure",
    "StageLoaded",
    "StageReady",
    "StageSetup",
    "StageStats",
    "StageTensors",
    "StageTrace",
    "StatsRequest",
    "StepCosts",
    "StepPlan",
    "StepResult",
    "TensorEntry",
    "ToDriver",
    "ToStage",
    "TraceRequest",
    "decode_to_driver",
    "decode_to_stage",
    "encode",
]

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
