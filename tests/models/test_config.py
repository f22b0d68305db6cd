"""A config is read once and exactly, or refused by name; planning needs no weights and no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.checkpoints import make_model

from ppinfer.errors import CheckpointError, UnknownArchitectureError
from ppinfer.models.config import ModelConfig, read_hf_config
from ppinfer.models.policy import (
    POLICIES,
    LlamaForCausalLMPipelinePolicy,
    MistralForCausalLMPipelinePolicy,
    PipelinePolicy,
    Qwen2ForCausalLMPipelinePolicy,
    Qwen3ForCausalLMPipelinePolicy,
    policy_for,
    register,
    stage_shapes,
)

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def read(**settings: Any) -> ModelConfig:
    return read_hf_config(BASE | settings)


def test_defaults() -> None:
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.group_size) == (4, 16, 1)
    assert (config.dtype, config.eos_token_ids, config.tie_word_embeddings) == ("fp32", (), False)
    assert config.windows == (None, None, None)
    assert (config.rope.kind, config.rope.theta) == ("default", 10000.0)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"torch_dtype": "bfloat16"}, "dtype", "bf16"),
        ({"dtype": "torch.float16"}, "dtype", "fp16"),
        ({"dtype": None}, "dtype", "fp32"),
        ({"eos_token_id": 5}, "eos_token_ids", (5,)),
        ({"eos_token_id": [5, 6]}, "eos_token_ids", (5, 6)),
        ({"eos_token_id": -1}, "eos_token_ids", ()),
        ({"head_dim": None}, "head_dim", 16),
        ({"hidden_act": "swish"}, "num_layers", 3),
    ],
)
def test_both_generations(settings: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(read(**settings), field) == value


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": YARN},
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn"} | YARN},
        {"rope_parameters": YARN | {"rope_theta": 5e5}},
    ],
)
def test_rope_of_both_generations(settings: dict[str, Any]) -> None:
    rope = read(**settings).rope
    assert (rope.kind, rope.theta, rope.factor) == ("yarn", 5e5, 4.0)
    assert rope.original_max_position == 128
    assert rope.attention_factor == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": 0}, "has 0 for num_hidden_layers"),
        ({"vocab_size": "many"}, "'many' for vocab_size"),
        ({"num_key_value_heads": 3}, "3 KV heads do not divide"),
        ({"hidden_size": 66}, "4 heads do not divide"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"dtype": "float8"}, "'float8'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"eos_token_id": "x"}, "token ids"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "longest sequence"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "new"}}, "'new' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "None for factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "0 for factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": "yarn"}, "a table is needed"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "kind of layer"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "rotates 0.5"),
    ],
)
def test_what_cannot_be_run_exactly(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(**settings)


def test_config_travels_as_messagepack() -> None:
    config = read(rope_scaling=YARN, eos_token_id=[1, 2])
    data = msgspec.msgpack.encode(config)
    assert msgspec.msgpack.decode(data, type=ModelConfig) == config


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 22}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16, "attention_bias": True}),
    ],
)
def test_names_shapes_and_counts_agree_with_transformers(
    family: str, settings: dict[str, Any]
) -> None:
    model = make_model(family, **settings)
    policy = policy_for([type(model).__name__])
    config = policy.model_config(model.config.to_dict())
    shapes = stage_shapes(config, 0, config.num_layers)
    if config.tie_word_embeddings:
        del shapes["head.weight"]
    named = {policy.checkpoint_name(name): shape for name, shape in shapes.items()}
    assert named == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert config.total_parameters == sum(p.numel() for p in model.parameters())
    parts = [config.stage_parameters(i, i + 1) for i in range(config.num_layers)]
    tied = config.embedding_parameters if config.tie_word_embeddings else 0
    assert sum(parts) == config.total_parameters + tied


# -------------------------------------------------------------------- policies


def test_windows() -> None:
    mistral = MistralForCausalLMPipelinePolicy()
    assert mistral.model_config(BASE | {"sliding_window": 7}).windows == (7, 7, 7)
    assert mistral.model_config(BASE).windows == (None,) * 3
    for policy in (Qwen2ForCausalLMPipelinePolicy(), Qwen3ForCausalLMPipelinePolicy()):
        given = BASE | {"sliding_window": 7, "head_dim": 16}
        assert policy.model_config(given).windows == (None,) * 3
        on = given | {"use_sliding_window": True}
        assert policy.model_config(on | {"max_window_layers": 1}).windows == (None, 7, 7)
        assert policy.model_config(on).windows == (None,) * 3
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        assert policy.model_config(on | {"layer_types": types}).windows == (7, None, 7)


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        (MistralForCausalLMPipelinePolicy(), {"sliding_window": 0}, "at least 1"),
        (MistralForCausalLMPipelinePolicy(), {"sliding_window": "x"}, "'x' for sliding_window"),
        (MistralForCausalLMPipelinePolicy(), {"layer_types": ["full_attention"]}, "layer_types"),
        (Qwen2ForCausalLMPipelinePolicy(), {"layer_types": ["full_attention"]}, "1 layer_types"),
        (Qwen2ForCausalLMPipelinePolicy(), {"layer_types": ["mamba"] * 3}, "type mamba"),
        (Qwen2ForCausalLMPipelinePolicy(), {"layer_types": 5}, "odd layer_types"),
        (Qwen2ForCausalLMPipelinePolicy(), {"max_window_layers": "x"}, "max_window_layers"),
        (Qwen2ForCausalLMPipelinePolicy(), {"num_hidden_layers": "x"}, "num_hidden_layers"),
    ],
)
def test_windows_that_are_refused(
    policy: PipelinePolicy, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        policy.model_config(BASE | settings)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"GPT2.*LlamaForCausalLM, Mistral"):
        policy_for(["GPT2LMHeadModel"])
    with pytest.raises(UnknownArchitectureError, match="without architectures"):
        policy_for([])


def test_a_policy_of_the_users_own() -> None:
    class Own(LlamaForCausalLMPipelinePolicy):
        architectures = ("OwnForCausalLM",)

    own = Own()
    assert policy_for(["OwnForCausalLM"], own) is own
    assert policy_for(["SomebodysFineTuneForCausalLM"], own) is own
    try:
        register(own)
        assert policy_for(["Other", "OwnForCausalLM"]) is own
    finally:
        del POLICIES["OwnForCausalLM"]


def test_planning_needs_no_torch() -> None:
    """The driver starts while its stages import torch; it should not wait for its own."""
    script = f"""
import sys
from ppinfer.models.policy import policy_for, stage_shapes
from ppinfer.weights import checkpoint, memfd, resolve
opened = checkpoint.open_checkpoint({BASE!r}, load_format="dummy")
policy = policy_for(opened.architectures)
config = policy.model_config(opened.config)
checkpoint.stage_tensors(opened, policy, config, 0, 1)
heavy = {{"torch", "numpy", "gguf", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, re.sub(r"\s+", " ", done.stderr)
