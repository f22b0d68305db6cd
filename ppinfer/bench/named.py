"""Models by name whose weights are made up: what is measured depends on shapes alone. No torch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppinfer.errors import CheckpointError
from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import policy_for
from ppinfer.weights.checkpoint import Checkpoint, open_checkpoint
from ppinfer.weights.resolve import resolve_model


def llama_config(**settings: Any) -> dict[str, Any]:
    """A Hugging Face config of Llama 2's kind."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **settings,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "llama-7b": llama_config(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "llama-13b": llama_config(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "llama-70b": llama_config(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    ),
    "llama-405b": llama_config(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    ),
    "toy": llama_config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=8192,
    ),
}


@dataclass(frozen=True)
class Subject:
    """A model to be measured: ``name`` for people, ``path`` and ``load_format`` for an engine."""

    name: str
    path: str
    load_format: str
    config: ModelConfig

    def open(self) -> Checkpoint:
        return open_checkpoint(resolve_model(self.path), self.load_format)


@contextmanager
def opened(model: str | dict[str, Any], name: str = "") -> Iterator[Subject]:
    """A path, ``demo``, a name out of ``CONFIGS``, or a config itself, as a model to load.

    Raises:
        CheckpointError: there is no such model.
    """
    table = CONFIGS.get(model) if isinstance(model, str) else model
    if table is None:
        assert isinstance(model, str)
        yield _subject(model, model, "auto")
        return
    with tempfile.TemporaryDirectory(prefix="ppinfer-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(table))
        yield _subject(name or str(model), folder, "dummy")


def _subject(name: str, path: str, load_format: str) -> Subject:
    try:
        checkpoint = open_checkpoint(resolve_model(path), load_format)
    except CheckpointError as error:
        known = ", ".join(sorted(CONFIGS))
        raise CheckpointError(f"{error} Names of made-up models: {known}.") from error
    config = policy_for(checkpoint.architectures).model_config(checkpoint.config)
    return Subject(name, path, load_format, config)
