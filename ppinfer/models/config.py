"""What a model is, in numbers: read once from a Hugging Face config, then never again.

``ModelConfig`` is plain data without torch: the driver plans with it and sends it to every stage as
MessagePack. ``read_hf_config`` is the border: past it nobody looks into a config dictionary. What
this project cannot compute exactly is a ``CheckpointError`` here, not a wrong token later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ppinfer.errors import CheckpointError
from ppinfer.models.rope_config import RopeConfig, read_rope
from ppinfer.planner.shape import ModelShape

__all__ = ["ModelConfig", "RopeConfig", "read_hf_config", "require_int"]

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float": "fp32"}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder of the Llama kind: pre-norm attention and gated MLP, rotary positions.

    Attributes:
        windows: for each layer, how many positions back (itself included) a token sees; ``None``
            sees all.
        dtype: what the checkpoint stores: ``fp32``, ``bf16`` or ``fp16``.
        eos_token_ids: ids that end a sequence; empty where the model names none.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    dtype: str = "fp32"

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    # ---------------------------------------------------------------- planning without loading

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer; all layers are alike."""
        hidden, inner = self.hidden_size, self.intermediate_size
        matrices = 2 * hidden * self.q_size + 2 * hidden * self.kv_size + 3 * hidden * inner
        norms = 2 * hidden + (2 * self.head_dim if self.qk_norm else 0)
        biases = (self.q_size + 2 * self.kv_size) if self.qkv_bias else 0
        biases += hidden if self.o_bias else 0
        biases += (2 * inner + hidden) if self.mlp_bias else 0
        return matrices + norms + biases

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """Final norm and output matrix, whether or not the matrix is tied."""
        return self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model; a tied matrix counts once."""
        tied = self.embedding_parameters if self.tie_word_embeddings else 0
        layers = self.num_layers * self.layer_parameters
        return layers + self.embedding_parameters + self.head_parameters - tied

    def stage_parameters(self, first_layer: int, last_layer: int) -> int:
        """Parameters that the stage of layers ``first_layer`` to ``last_layer`` (exclusive) holds.

        The first stage holds the embedding and the last one the head; a tied matrix is held by
        both, and twice where one stage is both, since the head is stored in another layout.
        """
        count = (last_layer - first_layer) * self.layer_parameters
        count += self.embedding_parameters if first_layer == 0 else 0
        count += self.head_parameters if last_layer == self.num_layers else 0
        return count

    def shape(self, name: str = "") -> ModelShape:
        """The same for the planner, which knows sizes alone."""
        return ModelShape(
            name=name,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            layer_parameters=self.layer_parameters,
            embedding_parameters=self.embedding_parameters,
            head_parameters=self.head_parameters,
            q_size=self.q_size,
            kv_size=self.kv_size,
            vocab_size=self.vocab_size,
            max_position=self.max_position,
        )

    def kv_bytes_per_token(self, num_layers: int, itemsize: int) -> int:
        """Bytes of keys and values that one position takes in ``num_layers`` layers."""
        return 2 * num_layers * self.kv_size * itemsize


def read_hf_config(
    hf: Mapping[str, Any],
    *,
    qkv_bias: bool | None = None,
    o_bias: bool | None = None,
    mlp_bias: bool | None = None,
    qk_norm: bool = False,
    head_dim: int | None = None,
    windows: tuple[int | None, ...] | None = None,
) -> ModelConfig:
    """Read a config as transformers 4 or 5 writes it.

    The keywords are what an architecture fixes outside its config: a bias given as ``None`` is
    read from ``attention_bias`` or ``mlp_bias``, ``head_dim`` is the architecture's default.

    Raises:
        CheckpointError: something is missing, contradictory, or nothing we can run exactly.
    """
    hidden = require_int(hf, "hidden_size")
    heads = require_int(hf, "num_attention_heads")
    layers = require_int(hf, "num_hidden_layers")
    kv_heads = (
        heads if hf.get("num_key_value_heads") is None else require_int(hf, "num_key_value_heads")
    )
    if heads % kv_heads:
        raise CheckpointError(
            f"The config has {heads} attention heads, which {kv_heads} KV heads do not divide."
        )
    if hf.get("head_dim") is not None:
        head_dim = require_int(hf, "head_dim")
    elif head_dim is None:
        if hidden % heads:
            raise CheckpointError(
                f"The config gives no head_dim, and {heads} heads do not divide its hidden_size "
                f"of {hidden}."
            )
        head_dim = hidden // heads
    if head_dim % 2:
        raise CheckpointError(f"head_dim is {head_dim}; rotary positions need an even number.")
    _refuse_unsupported(hf)
    max_position = require_int(hf, "max_position_embeddings")
    attention_bias = bool(hf.get("attention_bias", False))
    return ModelConfig(
        architecture=(hf.get("architectures") or [""])[0],
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=require_int(hf, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=require_int(hf, "vocab_size"),
        max_position=max_position,
        rms_norm_eps=_number(hf, "rms_norm_eps", 1e-6),
        rope=read_rope(hf, max_position),
        windows=(None,) * layers if windows is None else windows,
        qkv_bias=attention_bias if qkv_bias is None else qkv_bias,
        o_bias=attention_bias if o_bias is None else o_bias,
        mlp_bias=bool(hf.get("mlp_bias", False)) if mlp_bias is None else mlp_bias,
        qk_norm=qk_norm,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        eos_token_ids=_token_ids(hf.get("eos_token_id")),
        bos_token_id=_first(_token_ids(hf.get("bos_token_id"))),
        pad_token_id=_first(_token_ids(hf.get("pad_token_id"))),
        dtype=_dtype(hf),
    )


def require_int(hf: Mapping[str, Any], key: str) -> int:
    """A positive whole number that the config must have."""
    value = hf.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        what = "lacks" if value is None else f"has {value!r} for"
        raise CheckpointError(f"The config {what} {key}; a whole number of at least 1 is needed.")
    return value


def _number(hf: Mapping[str, Any], key: str, default: float) -> float:
    value = hf.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"The config has {value!r} for {key}; a number is needed.")
    return float(value)


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    """Named errors for what would otherwise give wrong logits."""
    act = hf.get("hidden_act") or "silu"
    if act not in ("silu", "swish"):
        raise CheckpointError(f"The model's activation is {act!r}; only silu is supported.")
    quantization = hf.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise CheckpointError(
            f"The checkpoint is quantised ({method or 'unknown method'}); give an unquantised one "
            "or a GGUF file."
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"):
        if hf.get(key):
            raise CheckpointError(f"The config sets {key}, which is not supported.")


def _dtype(hf: Mapping[str, Any]) -> str:
    """transformers 5 writes ``dtype``, 4 wrote ``torch_dtype``; neither means fp32."""
    name = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name not in _DTYPES:
        raise CheckpointError(
            f"The config's dtype is {name!r}; supported are {', '.join(sorted(_DTYPES))}."
        )
    return _DTYPES[name]


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise CheckpointError(f"The config names {value!r} as token ids; whole numbers are needed.")
    return tuple(i for i in ids if i >= 0)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None
