"""Pipeline-parallel inference for large language models.

The names below are the public surface. They are imported when first used, so that importing
ppinfer itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppinfer.version import __version__

if TYPE_CHECKING:
    from ppinfer.config import EngineConfig
    from ppinfer.engine.async_engine import AsyncPPInferEngine, AsyncStream, EngineInfo
    from ppinfer.engine.engine import PPInferEngine
    from ppinfer.engine.report import EngineReport, StageReport
    from ppinfer.errors import (
        CapacityError,
        CheckpointError,
        ConfigError,
        EngineClosedError,
        PPInferError,
        RequestError,
        StageError,
        TraceError,
        UnknownArchitectureError,
    )
    from ppinfer.grammar import Grammar
    from ppinfer.models.policy import (
        LlamaForCausalLMPipelinePolicy,
        MistralForCausalLMPipelinePolicy,
        PipelinePolicy,
        Qwen2ForCausalLMPipelinePolicy,
        Qwen3ForCausalLMPipelinePolicy,
    )
    from ppinfer.request import (
        PromptTokenLogprobs,
        RequestDelta,
        RequestOutput,
        Score,
        TokenLogprobs,
    )
    from ppinfer.sampling import SamplingParams

_HOMES = {
    "EngineConfig": "ppinfer.config",
    "PPInferEngine": "ppinfer.engine.engine",
    "AsyncPPInferEngine": "ppinfer.engine.async_engine",
    "AsyncStream": "ppinfer.engine.async_engine",
    "EngineInfo": "ppinfer.engine.async_engine",
    "EngineReport": "ppinfer.engine.report",
    "StageReport": "ppinfer.engine.report",
    "CapacityError": "ppinfer.errors",
    "CheckpointError": "ppinfer.errors",
    "ConfigError": "ppinfer.errors",
    "EngineClosedError": "ppinfer.errors",
    "PPInferError": "ppinfer.errors",
    "RequestError": "ppinfer.errors",
    "StageError": "ppinfer.errors",
    "TraceError": "ppinfer.errors",
    "UnknownArchitectureError": "ppinfer.errors",
    "PromptTokenLogprobs": "ppinfer.request",
    "RequestDelta": "ppinfer.request",
    "RequestOutput": "ppinfer.request",
    "Score": "ppinfer.request",
    "TokenLogprobs": "ppinfer.request",
    "SamplingParams": "ppinfer.sampling",
    "Grammar": "ppinfer.grammar",
    "PipelinePolicy": "ppinfer.models.policy",
    "LlamaForCausalLMPipelinePolicy": "ppinfer.models.policy",
    "MistralForCausalLMPipelinePolicy": "ppinfer.models.policy",
    "Qwen2ForCausalLMPipelinePolicy": "ppinfer.models.policy",
    "Qwen3ForCausalLMPipelinePolicy": "ppinfer.models.policy",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppinfer' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
