"""Where a model comes from: a path or a model object, read as far as its header; its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.errors import ConfigError
from ppinfer.messages import StageTensors
from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import PipelinePolicy, policy_for
from ppinfer.weights.checkpoint import Checkpoint, open_checkpoint, stage_tensors
from ppinfer.weights.resolve import resolve_model


class ModelSource:
    """A model before its stages exist. ``open`` reads its header; ``close`` lets go of its memory.

    Args:
        model: what the user gave the engine.
        policy: overrides the registry of architectures.
        tokenizer: a folder or GGUF file to take the tokenizer from, or ``None``.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: ``model``, ``policy`` or ``tokenizer`` is of no known kind.
    """

    def __init__(
        self, model: Any, policy: Any = None, tokenizer: Any = None, load_format: str = "auto"
    ) -> None:
        if policy is not None and not isinstance(policy, PipelinePolicy):
            raise ConfigError(
                "model_policy must be an instance of a PipelinePolicy, such as "
                f"LlamaForCausalLMPipelinePolicy(), not {policy!r}."
            )
        if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
            raise ConfigError(
                "tokenizer must be a folder with tokenizer.json or a .gguf file, not "
                f"{type(tokenizer).__name__}."
            )
        self._policy_override: PipelinePolicy | None = policy
        self._tokenizer_path = None if tokenizer is None else resolve_model(tokenizer)
        self._load_format = load_format
        self._path: Path | None = None
        self._checkpoint: Checkpoint | None = None
        self.model_fd: int | None = None
        if isinstance(model, str | os.PathLike):
            self._path = resolve_model(model)
        elif hasattr(model, "state_dict") and hasattr(model, "config"):
            from ppinfer.weights.memfd import write_model

            self.model_fd, self._checkpoint = write_model(model)
        else:
            raise ConfigError(
                "model must be a folder, a .gguf file, a hub id, 'demo', or a Hugging Face model "
                f"object, not {type(model).__name__}."
            )

    def open(self) -> ModelConfig:
        """Read the header and find the policy.

        Raises:
            CheckpointError: the files are missing, damaged, or of no known architecture.
        """
        if self._checkpoint is None:
            assert self._path is not None
            self._checkpoint = open_checkpoint(self._path, self._load_format)
        self._policy = policy_for(self._checkpoint.architectures, self._policy_override)
        self._config = self._policy.model_config(self._checkpoint.config)
        return self._config

    def stage_tensors(self, ranges: Sequence[tuple[int, int]]) -> list[StageTensors]:
        """What each stage reads, and from where."""
        assert self._checkpoint is not None
        return [
            stage_tensors(self._checkpoint, self._policy, self._config, first, last)
            for first, last in ranges
        ]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was named, or else the model's own, or ``None``."""
        if self._tokenizer_path is not None and self._tokenizer_path.is_dir():
            return Tokenizer.from_folder(self._tokenizer_path)
        checkpoint = self._checkpoint
        if self._tokenizer_path is not None:
            checkpoint = open_checkpoint(self._tokenizer_path, "dummy")
        assert checkpoint is not None
        if checkpoint.metadata is not None:
            return Tokenizer.from_gguf(checkpoint.metadata)
        if checkpoint.folder is not None and (checkpoint.folder / "tokenizer.json").is_file():
            return Tokenizer.from_folder(checkpoint.folder)
        return None

    def close(self) -> None:
        if self.model_fd is not None:
            os.close(self.model_fd)
            self.model_fd = None
