"""Tiny checkpoints with random weights, made with transformers, which is also the oracle.

    config, model = make_model("qwen2", num_hidden_layers=3, …)
    folder = save_model(model, tmp_path / "qwen2")

``reference_logits`` runs the oracle; ``Chain`` runs our stages one after another in this process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppinfer.kernels.attention import AttentionBatch
from ppinfer.models.config import ModelConfig
from ppinfer.models.decoder import StageModel
from ppinfer.models.policy import policy_for
from ppinfer.weights.checkpoint import Checkpoint, open_checkpoint, stage_tensors

CPU = torch.device("cpu")

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(family: str, seed: int = 0, **settings: Any) -> Any:
    """A random fp32 model of ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.

    Weights are larger than transformers initialises them, so that every part shows in the logits;
    norms and biases are random too.
    """
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(**(SMALL | settings))
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                scale = 0.5 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
                parameter.normal_(0, scale, generator=generator)
    return model


def save_model(
    model: Any, folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB"
) -> Path:
    """Write ``config.json`` and safetensors, sharded where they exceed ``max_shard_size``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        model.float()
    return folder


def config_alone(folder: Path, **settings: Any) -> Path:
    """A Llama of which only the config is there, for ``load_format="dummy"``: no transformers."""
    said = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(said | SMALL | settings))
    return folder


def reference_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """``(len(ids), vocabulary)`` from transformers."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
        return logits.float()


class Chain:
    """Stages of one model in this process, with a paged cache each and a block table a sequence."""

    def __init__(
        self,
        checkpoint: Checkpoint | Path,
        cuts: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
        num_blocks: int = 160,
    ) -> None:
        if isinstance(checkpoint, Path):
            checkpoint = open_checkpoint(checkpoint)
        policy = policy_for(checkpoint.architectures)
        self.config: ModelConfig = policy.model_config(checkpoint.config)
        bounds = [0, *cuts, self.config.num_layers]
        self.stages = []
        for first, last in pairwise(bounds):
            stage = StageModel(
                self.config,
                first,
                last,
                is_first=first == 0,
                is_last=last == self.config.num_layers,
                dtype=dtype,
                device=CPU,
            )
            stage.load(stage_tensors(checkpoint, policy, self.config, first, last))
            self.stages.append(stage)
        shape = (num_blocks, self.config.num_kv_heads, block_size, self.config.head_dim)
        self.caches = [
            [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in layers]
            for layers in (range(stage.num_layers) for stage in self.stages)
        ]
        self._block_size = block_size
        # Blocks are handed out from both ends in turn, so that no table is contiguous.
        order = range(num_blocks)
        self._free = [b for pair in zip(order, reversed(order), strict=True) for b in pair]
        self._free = list(dict.fromkeys(self._free))
        self.tables: dict[int, list[int]] = {}

    def step(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> list[Tensor]:
        """Compute tokens: ``(sequence, start, ids)`` each; logits of all their rows."""
        for sequence, start, ids in parts:
            table = self.tables.setdefault(sequence, [])
            while len(table) * self._block_size < start + len(ids):
                table.append(self._free.pop(0))
        batch = AttentionBatch.build(
            [start for _, start, _ in parts],
            [len(ids) for _, _, ids in parts],
            [self.tables[sequence] for sequence, _, _ in parts],
            self._block_size,
            config=self.config,
            device=CPU,
        )
        with torch.inference_mode():
            x = torch.tensor([token for _, _, ids in parts for token in ids])
            for stage, cache in zip(self.stages, self.caches, strict=True):
                x = stage.forward(x, batch, cache)
            logits = self.stages[-1].logits(x).float()
        return list(logits.split([len(ids) for _, _, ids in parts]))

    def run(self, ids: Sequence[int], chunks: Sequence[int] = ()) -> Tensor:
        """All logits of one new sequence, computed in chunks of these lengths and then the rest."""
        sequence, start, out = len(self.tables), 0, []
        lengths = [*chunks, len(ids) - sum(chunks)]
        for length in filter(None, lengths):
            out += self.step([(sequence, start, ids[start : start + length])])
            start += length
        return torch.cat(out)

    def release(self) -> None:
        """Forget all sequences; their blocks keep what was in them."""
        for table in self.tables.values():
            self._free.extend(table)
        self.tables.clear()


def random_ids(length: int, seed: int = 0, vocab_size: int = 97) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()
