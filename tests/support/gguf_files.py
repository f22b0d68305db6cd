"""Tiny GGUF files, written with the ``gguf`` package from a Hugging Face model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.chat_template": "{{ messages }}",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{_LAYER['.'.join(part)]}.{kind}"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to q and k: rows 0, D/2, 1, D/2 + 1, … of each head."""
    halves = weight.view(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    model: Any, path: Path, qtype: str = "F32", rope_factors: Tensor | None = None
) -> dict[str, Tensor]:
    """Write the model as llama.cpp would; matrices whose rows fit its blocks become ``qtype``.

    Returns the values as a reader should see them, by Hugging Face name.
    """
    config = model.config
    kind = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}[config.model_type]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_merges(["t 1", "t 2"])
    for key, value in TOKENIZER.items():
        writer.add_string(key, value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tied = config.tie_word_embeddings
    values: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        part = name.split(".")[-2]
        permuted = kind == "llama" and part in heads
        stored = interleave(tensor, heads[part]) if permuted else tensor
        array, dtype = _encode(stored.float().contiguous().numpy(), qtype)
        writer.add_tensor(gguf_name(name), array, raw_dtype=dtype)
        seen = torch.from_numpy(gguf.quants.dequantize(array, dtype)).view(tensor.shape)
        values[name] = _deinterleave(seen, heads[part]) if permuted else seen
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _encode(
    array: npt.NDArray[np.float32], qtype: str
) -> tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]:
    dtype = gguf.GGMLQuantizationType[qtype]
    block = gguf.GGML_QUANT_SIZES[dtype][0]
    if array.ndim < 2 or array.shape[-1] % block:
        dtype = gguf.GGMLQuantizationType.F32
    return gguf.quants.quantize(array, dtype), dtype


def _deinterleave(weight: Tensor, heads: int) -> Tensor:
    pairs = weight.view(heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
