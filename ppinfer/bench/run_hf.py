"""The row that others are measured by: ``generate`` of transformers with all cores.

The model is dense and in the row's dtype, as torch holds it. In particular a GGUF file is not read
by transformers, which would keep its weights packed and convert them in every product: its tensors
are dequantised once, here.
"""

from __future__ import annotations

import os
import time
import warnings
from typing import Any

import torch

from ppinfer.bench.procfs import cores, peak_bytes
from ppinfer.bench.timing import Watched, summarise
from ppinfer.errors import ConfigError
from ppinfer.models.policy import policy_for, stage_shapes
from ppinfer.weights.checkpoint import open_checkpoint, stage_tensors
from ppinfer.weights.reader import TensorReader
from ppinfer.weights.resolve import resolve_model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _Moments:
    """A streamer that notes when each token of the batch came."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, tokens: object) -> None:
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


class HFRunner:
    def load(self, model: str, settings: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        torch.set_num_threads(settings.get("threads") or cores())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = load_dense(
                model, _DTYPES[settings["dtype"]], settings.get("load_format", "auto")
            )
        return {
            "seconds": time.perf_counter() - started,
            "notes": [],
            "choices": [],
            "settings": {"threads": torch.get_num_threads(), "attention": "sdpa"},
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Complete all prompts as one batch, which is how ``generate`` is fastest."""
        ids = torch.tensor(prompts)
        streamer = _Moments()
        with torch.inference_mode(), Watched() as watched:
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                streamer=streamer,
            )
        moments = streamer.moments[1:]  # the first call brings the prompts
        return summarise([moments] * len(prompts), new, watched) | {
            "peak_bytes": [peak_bytes(os.getpid())]
        }

    def close(self) -> None:
        pass


def load_dense(model: str, dtype: torch.dtype, load_format: str = "auto") -> Any:
    """A model of transformers in ``dtype``, filled by our own reader.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the model cannot be read.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"transformers is needed for this row: {error}") from error

    checkpoint = open_checkpoint(resolve_model(model), load_format)
    policy = policy_for(checkpoint.architectures)
    config = policy.model_config(checkpoint.config)
    family = config.architecture.removesuffix("ForCausalLM")
    hf_config = getattr(transformers, f"{family}Config")(**checkpoint.config)
    dense: Any = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        hf_config, dtype=dtype, attn_implementation="sdpa"
    )
    state = dense.state_dict()
    tensors = stage_tensors(checkpoint, policy, config, 0, config.num_layers)
    with TensorReader(tensors, config) as reader:
        for name in stage_shapes(config, 0, config.num_layers):
            if policy.checkpoint_name(name) in state:
                reader.read_into(name, state[policy.checkpoint_name(name)])
    dense.tie_weights()
    # Nothing ends early; with no such id there is no work to hinder it either.
    dense.generation_config.eos_token_id = None
    return dense.eval()
