"""A GGUF file presented as a Hugging Face checkpoint: config, names and shapes (no torch).

The rest of the project knows Hugging Face names only; the translation ends here.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from ppinfer.errors import CheckpointError
from ppinfer.messages import TensorEntry
from ppinfer.weights.gguf_header import GGUFHeader

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROPE_FACTORS = "rope_freqs.weight"


def hf_config(path: str, header: GGUFHeader) -> dict[str, Any]:
    """The metadata as a config that the policies read.

    Raises:
        CheckpointError: the file describes something that the policies do not cover.
    """
    meta = header.metadata
    kind = str(meta.get("general.architecture"))
    config: dict[str, Any] = {"architectures": [ARCHITECTURES.get(kind, kind)]}
    if kind not in ARCHITECTURES:
        return config

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{kind}.{key}", default)

    for key in ("expert_count", "attention.sliding_window", "logit_scale"):
        if get(key):
            raise CheckpointError(f"{path} sets {kind}.{key}, which is not supported.")
    heads, hidden = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length")
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        head_dim = hidden // heads
    if get("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{path} has keys and values of different sizes; not supported.")
    embedding = header.tensors.get("token_embd.weight")
    config |= {
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-5),
        "vocab_size": embedding.shape[0] if embedding else get("vocab_size"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "rope_theta": get("rope.freq_base", 10000.0),
        "partial_rotary_factor": _ratio(get("rope.dimension_count"), head_dim),
        "rope_scaling": _rope_scaling(path, header, kind),
        "dtype": _dtype(header),
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": [
            meta[key]
            for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
            if key in meta
        ],
    }
    return config


def hf_tensors(header: GGUFHeader) -> dict[str, TensorEntry]:
    """The directory under Hugging Face names; what is unknown keeps its own name.

    llama.cpp's converter reorders the rows of q and k of the Llama family; ``rope_heads`` says so.
    """
    kind = header.metadata.get("general.architecture")
    heads = {
        "attn_q": header.metadata.get(f"{kind}.attention.head_count", 0),
        "attn_k": header.metadata.get(
            f"{kind}.attention.head_count_kv",
            header.metadata.get(f"{kind}.attention.head_count", 0),
        ),
    }
    tensors = {}
    for entry in header.tensors.values():
        if entry.name == _ROPE_FACTORS:
            continue  # part of the config
        name, part = _hf_name(entry.name)
        rope_heads = heads.get(part, 0) if kind == "llama" else 0
        tensors[name] = msgspec.structs.replace(entry, name=name, rope_heads=rope_heads)
    return tensors


def _hf_name(name: str) -> tuple[str, str]:
    """The Hugging Face name, and which part of a layer it is (or nothing)."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match:
        layer, part, kind = match.groups()
        if layer is None and part in _OUTER:
            return f"{_OUTER[part]}.{kind}", ""
        if layer is not None and part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{kind}", part
    return name, ""


def _rope_scaling(path: str, header: GGUFHeader, kind: str) -> dict[str, Any] | None:
    """Linear and YaRN scaling have metadata; Llama 3's is a tensor of divisors."""
    meta: Mapping[str, Any] = header.metadata
    prefix = f"{kind}.rope.scaling"
    if (entry := header.tensors.get(_ROPE_FACTORS)) is not None:
        return {"rope_type": "factors", "factors": _read_floats(path, entry)}
    scaling = meta.get(f"{prefix}.type", "none")
    if scaling == "none":
        return None
    rope: dict[str, Any] = {"rope_type": scaling, "factor": meta.get(f"{prefix}.factor")}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = meta.get(f"{prefix}.original_context_length")
        rope["attention_factor"] = meta.get(f"{prefix}.attn_factor")
    return rope


def _ratio(rotated: Any, head_dim: Any) -> float:
    """How much of each head is rotated; what is no number is found out elsewhere."""
    if isinstance(rotated, int) and isinstance(head_dim, int) and rotated and head_dim:
        return rotated / head_dim
    return 1.0


def _read_floats(path: str, entry: TensorEntry) -> list[float]:
    if entry.dtype != "F32" or entry.num_bytes > 1 << 16:
        raise CheckpointError(f"{path} stores {entry.name} as {entry.dtype}; F32 is needed.")
    with open(path, "rb") as file:
        data = os.pread(file.fileno(), entry.num_bytes, entry.offset)
    return list(struct.unpack(f"<{entry.num_bytes // 4}f", data))


def _dtype(header: GGUFHeader) -> str:
    """The type that most bytes have; quantised tensors are computed in bf16 unless told."""
    sizes: dict[str, int] = {}
    for entry in header.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.num_bytes
    most = max(sizes, key=sizes.__getitem__, default="F32")
    return _FLOATS.get(most, "bfloat16")
