"""A model small enough for threads of a test, and ways to cut it."""

from __future__ import annotations

from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy

CUTS = [[(0, 5)], [(0, 2), (2, 5)], [(0, 1), (1, 4), (4, 5)], [(0, 2), (2, 3), (3, 4), (4, 5)]]


def small_llama() -> ModelConfig:
    """Five layers, and a vocabulary of 300."""
    return LlamaForCausalLMPipelinePolicy().model_config(
        {
            "architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 80,
            "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 5,
            "vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32",
        }
    )  # fmt: skip
