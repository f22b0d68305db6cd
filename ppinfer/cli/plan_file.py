"""The file of a plan: written by ``ppinfer plan --json``, taken by ``--plan FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ppinfer.config import EngineConfig
from ppinfer.errors import ConfigError

if TYPE_CHECKING:
    from ppinfer.planner.choice import Choice, Plan

_FORMAT = 1


class _File(msgspec.Struct):
    ppinfer_plan: int
    settings: dict[str, Any]


def as_text(plan: Plan, model: str) -> str:
    """One JSON object. ``settings`` are those of the pipeline of all devices."""
    from ppinfer.planner.advice import answer

    return msgspec.json.encode(
        {
            "ppinfer_plan": _FORMAT,
            "model": model,
            "answer": answer(plan),
            "settings": engine_settings(plan.pipeline, plan.question.dtype),
            "pipeline": _choice(plan.pipeline),
            "alternatives": [_choice(choice) for choice in plan.others],
            "unfit": [{"what": unfit.words, "why": unfit.reason} for unfit in plan.unfit],
        }
    ).decode()


def engine_settings(choice: Choice, dtype: str) -> dict[str, Any]:
    """What an engine is to be given, so that it does as was planned."""
    tuning = choice.assembled.pipeline.tuning
    return {
        "pp_size": len(choice.assembled.devices),
        "dtype": dtype,
        "partition": [last - first for first, last in choice.assembled.ranges],
        "num_micro_batches": tuning.micro_batches[-1],
        "max_num_seqs": choice.config.max_sequences,
        "max_prefill_tokens": tuning.max_prefill_tokens,
    }


def read_settings(path: Path) -> dict[str, Any]:
    """The engine's settings out of a plan.

    Raises:
        ConfigError: the file cannot be read, or is no plan.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise ConfigError(f"The plan {path} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no plan: {error}. Make one with: ppinfer plan … --json > {path.name}"
        ) from error
    if found.ppinfer_plan != _FORMAT:
        raise ConfigError(
            f"{path} is a plan of format {found.ppinfer_plan}, and this version reads {_FORMAT}."
        )
    EngineConfig.from_settings(found.settings)  # refuses what is no setting
    return found.settings


def _choice(choice: Choice) -> dict[str, Any]:
    assembled, outcome = choice.assembled, choice.outcome
    return {
        "what": choice.words,
        "copies": choice.copies,
        "tokens_per_second": choice.throughput,
        "kv_tokens": choice.kv_tokens,
        "max_num_seqs": choice.config.max_sequences,
        "num_micro_batches": assembled.pipeline.tuning.micro_batches[-1],
        "max_prefill_tokens": assembled.pipeline.tuning.max_prefill_tokens,
        "stages": [
            {
                "device": device.name,
                "first_layer": first,
                "last_layer": last,
                "memory": memory,
                "seconds": {**use.work, **use.waits},
                "busy_share": use.busy_share,
            }
            for device, (first, last), memory, use in zip(
                assembled.devices, assembled.ranges, assembled.memory, outcome.stages, strict=True
            )
        ],
        "seconds": outcome.seconds,
        "first_token_seconds": outcome.first_token,
        "between_tokens_seconds": outcome.between_tokens,
        "request_seconds": outcome.whole,
        "kv_peak": outcome.kv_peak,
        "preemptions": outcome.preemptions,
    }
