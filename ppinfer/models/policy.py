"""How one architecture is read and cut into stages, as pure data (no torch).

A ``PipelinePolicy`` lives in the driver only. It turns a Hugging Face config into a ``ModelConfig``
and the decoder's own (canonical) tensor names into the checkpoint's:

    embed.weight                                                on the first stage
    layers.{i}.{attn_norm,q,k,v,o,mlp_norm,gate,up,down}.weight on the stage that holds layer i
    layers.{i}.{q_norm,k_norm}.weight                           where the model normalises q and k
    layers.{i}.{q,k,v,o,gate,up,down}.bias                      where the model has biases
    final_norm.weight, head.weight                              on the last stage

A GGUF file is presented under the same Hugging Face names (``weights/gguf.py``), so one policy
serves both. To add an architecture that the decoder can express, subclass ``PipelinePolicy`` and
either pass an instance to the engine or call ``register``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ppinfer.errors import CheckpointError, UnknownArchitectureError
from ppinfer.models.config import ModelConfig, read_hf_config, require_int

_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


class PipelinePolicy:
    """Base of all policies; its names are the ones that nearly every Llama-like family uses."""

    architectures: ClassVar[tuple[str, ...]] = ()

    def model_config(self, hf: Mapping[str, Any]) -> ModelConfig:
        """The model's numbers; raises ``CheckpointError`` for what cannot be run exactly."""
        return read_hf_config(hf)

    def checkpoint_name(self, canonical: str) -> str:
        """The checkpoint's name of a canonical tensor name."""
        if canonical in _OUTER:
            return _OUTER[canonical]
        _, layer, part, kind = canonical.split(".")
        return f"model.layers.{layer}.{_LAYER_PARTS[part]}.{kind}"

    def may_be_left_over(self, name: str) -> bool:
        """Whether a tensor that no stage reads is known to be harmless.

        Old checkpoints store the rotary frequencies, which follow from the config.
        """
        return name.endswith("rotary_emb.inv_freq")


class LlamaForCausalLMPipelinePolicy(PipelinePolicy):
    """Llama 1 to 3 and everything that calls itself Llama."""

    architectures = ("LlamaForCausalLM",)


class MistralForCausalLMPipelinePolicy(PipelinePolicy):
    """Mistral: no biases, and one sliding window for all layers where the config sets it."""

    architectures = ("MistralForCausalLM",)

    def model_config(self, hf: Mapping[str, Any]) -> ModelConfig:
        if hf.get("layer_types"):
            raise CheckpointError(
                "The config gives a Mistral model layer_types, which transformers ignores for it; "
                "what was meant cannot be told."
            )
        windows = (_window(hf),) * require_int(hf, "num_hidden_layers")
        return read_hf_config(hf, qkv_bias=False, o_bias=False, mlp_bias=False, windows=windows)


class Qwen2ForCausalLMPipelinePolicy(PipelinePolicy):
    """Qwen 2 and 2.5: biases on q, k and v; the upper layers may have a sliding window."""

    architectures = ("Qwen2ForCausalLM",)

    def model_config(self, hf: Mapping[str, Any]) -> ModelConfig:
        return read_hf_config(
            hf, qkv_bias=True, o_bias=False, mlp_bias=False, windows=layer_windows(hf)
        )


class Qwen3ForCausalLMPipelinePolicy(PipelinePolicy):
    """Qwen 3: q and k are normalised head by head, and the head size is the config's own."""

    architectures = ("Qwen3ForCausalLM",)

    def model_config(self, hf: Mapping[str, Any]) -> ModelConfig:
        return read_hf_config(
            hf, mlp_bias=False, qk_norm=True, head_dim=128, windows=layer_windows(hf)
        )


POLICIES: dict[str, PipelinePolicy] = {}


def register(policy: PipelinePolicy) -> None:
    """Serve the policy's architectures from now on, for every engine of this process."""
    POLICIES.update(dict.fromkeys(policy.architectures, policy))


for _policy in (
    LlamaForCausalLMPipelinePolicy(),
    MistralForCausalLMPipelinePolicy(),
    Qwen2ForCausalLMPipelinePolicy(),
    Qwen3ForCausalLMPipelinePolicy(),
):
    register(_policy)


def policy_for(
    architectures: Iterable[str], policy: PipelinePolicy | None = None
) -> PipelinePolicy:
    """``policy`` if one is given, else that of the first architecture that is known.

    A policy that is given counts whatever the model calls itself: fine-tunes rename what they
    did not change. One that does not fit fails at the first tensor it finds missing or left over.

    Raises:
        UnknownArchitectureError: no policy is given or known.
    """
    names = tuple(architectures)
    if policy is not None:
        return policy
    for name in names:
        if name in POLICIES:
            return POLICIES[name]
    raise UnknownArchitectureError(
        f"No pipeline policy is known for {', '.join(names) or 'a model without architectures'}; "
        f"known are {', '.join(sorted(POLICIES))}. Pass model_policy= to serve another."
    )


def stage_shapes(
    config: ModelConfig, first_layer: int, last_layer: int
) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape of every tensor of a stage; ``last_layer`` is exclusive.

    With tied embeddings the last stage reads ``head.weight`` from the embedding's tensor.
    """
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if first_layer == 0:
        shapes["embed.weight"] = (config.vocab_size, hidden)
    for layer in range(first_layer, last_layer):
        shapes |= {f"layers.{layer}.{name}": s for name, s in layer_shapes(config).items()}
    if last_layer == config.num_layers:
        shapes["final_norm.weight"] = (hidden,)
        shapes["head.weight"] = (config.vocab_size, hidden)
    return shapes


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """``q.weight`` and so on to shape, for one layer; matrices are (outputs, inputs)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    matrices = {
        "q": (config.q_size, hidden, config.qkv_bias),
        "k": (config.kv_size, hidden, config.qkv_bias),
        "v": (config.kv_size, hidden, config.qkv_bias),
        "o": (hidden, config.q_size, config.o_bias),
        "gate": (inner, hidden, config.mlp_bias),
        "up": (inner, hidden, config.mlp_bias),
        "down": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (hidden,)}
    for name, (rows, columns, has_bias) in matrices.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)
    shapes["mlp_norm.weight"] = (hidden,)
    if config.qk_norm:
        shapes |= {"q_norm.weight": (config.head_dim,), "k_norm.weight": (config.head_dim,)}
    return shapes


def _window(hf: Mapping[str, Any]) -> int | None:
    """``sliding_window``, in positions, or ``None``."""
    window = hf.get("sliding_window")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise CheckpointError(f"The config has {window!r} for sliding_window.")
    if window is not None and window < 1:
        raise CheckpointError(f"The config has a sliding_window of {window}; at least 1 is needed.")
    return window


def layer_windows(hf: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Windows by layer as Qwen gives them: ``layer_types``, or those past ``max_window_layers``."""
    layers = require_int(hf, "num_hidden_layers")
    window = _window(hf) if hf.get("use_sliding_window") else None
    types = hf.get("layer_types")
    if types is None:
        full = hf.get("max_window_layers", 28)  # the default of transformers
        if not isinstance(full, int):
            raise CheckpointError(f"The config has {full!r} for max_window_layers.")
        return tuple(window if i >= full else None for i in range(layers))
    if not isinstance(types, list | tuple) or len(types) != layers:
        count = len(types) if isinstance(types, list | tuple) else "odd"
        raise CheckpointError(f"The config has {count} layer_types for {layers} layers.")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(f"The config has a layer of type {kind}, which is not supported.")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
