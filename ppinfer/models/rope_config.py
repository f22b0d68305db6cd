"""Rotary position settings, read from a Hugging Face config of either generation (no torch).

transformers 4 wrote ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``), 5 writes
one ``rope_parameters``. ``models/rope.py`` computes from the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from ppinfer.errors import CheckpointError

KINDS = ("default", "linear", "llama3", "yarn", "factors")
_UNKNOWN_EFFECT = ("mrope_section", "llama_4_scaling_beta", "short_factor", "long_factor")


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How positions become angles. Fields past ``theta`` matter only to the kinds that name them.

    Attributes:
        kind: ``default``, ``linear``, ``llama3``, ``yarn``, or ``factors`` for divisors that GGUF
            files of Llama 3 carry in place of settings.
        factor: how far the context is stretched (linear, llama3, yarn).
        original_max_position: context of the pre-training (llama3, yarn).
        factors: divisors of the frequencies, one for each pair of a head (factors).
        attention_factor: multiplies cosines and sines (yarn; 1 elsewhere).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()


def read_rope(hf: Mapping[str, Any], max_position: int) -> RopeConfig:
    """Raises ``CheckpointError`` for a kind whose result we cannot give exactly."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"The config's rope settings are {rope!r}; a table is needed.")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise CheckpointError("The config gives each kind of layer its own rope; not supported.")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    theta = _positive("rope_theta", rope.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    partial = rope.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise CheckpointError(f"The config rotates {partial} of each head; only 1.0 is supported.")
    for key in _UNKNOWN_EFFECT:
        if rope.get(key) and kind != "longrope":
            raise CheckpointError(f"The config's rope settings have {key}, which is not supported.")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "dynamic":
        raise CheckpointError(
            "Rope of type 'dynamic' is not supported: its result depends on the longest sequence "
            "seen so far."
        )
    if kind not in KINDS:
        raise CheckpointError(
            f"Rope of type {kind!r} is not supported; supported are {', '.join(KINDS)}."
        )
    if kind == "factors":
        divisors = tuple(_positive("factors", value) for value in rope.get("factors") or ())
        return RopeConfig(theta=theta, kind=kind, factors=divisors)
    # A config's own original length wins over the one beside the factor, as in transformers.
    original = hf.get("original_max_position_embeddings") or rope.get(
        "original_max_position_embeddings", max_position
    )
    original = int(_positive("original_max_position_embeddings", original))
    factor = rope.get("factor")
    if kind == "yarn" and factor is None:
        factor = max_position / original
    factor = _positive("factor", factor)
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=factor)
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=factor,
            original_max_position=original,
            low_freq_factor=_positive("low_freq_factor", rope.get("low_freq_factor")),
            high_freq_factor=_positive("high_freq_factor", rope.get("high_freq_factor")),
        )
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=factor,
        original_max_position=original,
        attention_factor=_yarn_attention_factor(rope, factor),
        beta_fast=_positive("beta_fast", rope.get("beta_fast") or 32.0),
        beta_slow=_positive("beta_slow", rope.get("beta_slow") or 1.0),
        truncate=bool(rope.get("truncate", True)),
    )


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Section 3.4 of YaRN (Peng et al. 2023), with the ratio of two scales that DeepSeek added."""
    if rope.get("attention_factor") is not None:
        return _positive("attention_factor", rope["attention_factor"])

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and all_dim:
        return scale(float(mscale)) / scale(float(all_dim))
    return scale(1.0)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"The config's rope settings have {value!r} for {name}.")
    if not (math.isfinite(value) and value > 0):
        raise CheckpointError(
            f"The config's rope settings have {value} for {name}; above 0 needed."
        )
    return float(value)
