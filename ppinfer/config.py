"""Settings of an engine: one frozen, validated dataclass. The CLI reads its defaults from here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast

from ppinfer.errors import ConfigError

Dtype: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Comm: TypeAlias = Literal["auto", "shm", "p2p", "broadcast"]
Partition: TypeAlias = Literal["auto", "even"] | tuple[int, ...]

DTYPES = ("auto", "fp32", "bf16", "fp16")
COMMS = ("auto", "shm", "p2p", "broadcast")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")
BLOCK_SIZES = (16, 32, 64, 128)
MAX_TIMEOUT = 1_000_000

_DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def _setting(default: Any, help: str) -> Any:
    """A field whose text serves ``--help`` and error messages alike."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Every setting of ``PPInferEngine``; ``settings_help()`` says what each one means.

    Raises:
        ConfigError: a value has the wrong type or is out of its range.
    """

    pp_size: int = _setting(1, "Number of pipeline stages, one process and device each.")
    dtype: Dtype = _setting("auto", "fp32, bf16 or fp16; auto takes the checkpoint's own.")
    micro_batch_size: int = _setting(
        8, "Sequences of a micro-batch; this times micro-batches (or else stages) run at once."
    )
    num_micro_batches: int | None = _setting(
        None, "Micro-batches that stream through the stages; default: as many as measured best."
    )
    max_num_seqs: int | None = _setting(
        None, "Sequences that run at once, at most; default: micro_batch_size for each micro-batch."
    )
    max_prefill_tokens: int | None = _setting(
        None, "Most prompt tokens that one step computes; default: as many as measured best."
    )
    new_length: int = _setting(32, "Tokens that inference() adds to each row.")
    partition: Partition = _setting(
        "auto", "Layers of each stage: auto (by cost), even (by count), or a list such as 17,13."
    )
    comm: Comm = _setting(
        "auto", "How hidden states travel: shm (stages of one host), p2p, broadcast, or auto."
    )
    device: str = _setting("auto", "cpu, cuda, or auto (cuda where every stage finds a GPU).")
    kv_cache_memory: int | None = _setting(
        None, "Bytes of KV cache a stage, such as 2GB; default: what the slots can use, if free."
    )
    block_size: int = _setting(16, "Tokens of one KV cache block: 16, 32, 64 or 128.")
    max_model_len: int | None = _setting(
        None, "Longest prompt plus output, in tokens; default: the model's own limit."
    )
    prefix_caching: bool = _setting(True, "Reuse KV blocks of prompts that begin alike.")
    row_invariant: bool = _setting(
        True, "Never let a sequence's bits depend on its company; off may be faster."
    )
    load_format: Literal["auto", "dummy"] = _setting(
        "auto", "auto reads the checkpoint; dummy makes weights up from its config alone."
    )
    threads: int | None = _setting(
        None, "CPU threads a stage; default: the machine's cores divided over its stages."
    )
    recv_ahead: int = _setting(3, "Receives a stage posts ahead of its compute; on GPUs none are.")
    timeout: float = _setting(300.0, "Longest wait for a stage, in seconds, before it is named.")

    def __post_init__(self) -> None:
        self._normalise("dtype", _DTYPE_NAMES.get(_dtype_name(self.dtype), self.dtype))
        self._normalise("partition", parse_partition(self.partition))
        if self.kv_cache_memory is not None:
            self._normalise("kv_cache_memory", parse_bytes(self.kv_cache_memory))
        for name in ("pp_size", "micro_batch_size", "new_length"):
            self._check_int(name, 1)
        self._check_int("recv_ahead", 1)
        for name in (
            "num_micro_batches", "max_num_seqs", "max_prefill_tokens", "max_model_len", "threads",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                self._check_int(name, 1)
        self._check_choice("dtype", DTYPES)
        self._check_choice("comm", COMMS)
        self._check_choice("device", DEVICES)
        self._check_choice("load_format", LOAD_FORMATS)
        self._check_choice("block_size", BLOCK_SIZES)
        for name in ("prefix_caching", "row_invariant"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be true or false, not {value!r}.")
        timeout = self.timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise ConfigError(f"timeout must be a number of seconds, not {timeout!r}.")
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ConfigError(
                f"timeout must be above 0 and at most {MAX_TIMEOUT:,} seconds, not {timeout}."
            )
        if isinstance(self.partition, tuple) and len(self.partition) != self.pp_size:
            raise ConfigError(
                f"partition {list(self.partition)} names {len(self.partition)} stages, "
                f"but pp_size is {self.pp_size}; give one number of layers for each stage."
            )

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> EngineConfig:
        """Build from keywords; an unknown one is a ``ConfigError`` that suggests the nearest."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
                raise ConfigError(f"Unknown setting {name!r}; {hint}")
        return cls(**settings)

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches in force."""
        return self.num_micro_batches or self.pp_size

    @property
    def max_sequences(self) -> int:
        """Most sequences that run at once, in all micro-batches together."""
        return self.max_num_seqs or self.micro_batches * self.micro_batch_size

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_int(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{name} must be a whole number of at least {low}, not {value!r}.")

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            words = ", ".join(str(c) for c in choices)
            raise ConfigError(f"{name} must be one of {words}, not {value!r}.")


def settings_help() -> dict[str, str]:
    """Setting name to its one-line meaning."""
    return {f.name: f.metadata["help"] for f in fields(EngineConfig)}


def parse_partition(value: Any) -> Partition:
    """``"auto"``, ``"even"``, ``"17,13"``, or a sequence of layer counts."""
    if value in ("auto", "even"):
        return cast(Partition, value)
    try:
        items = value.split(",") if isinstance(value, str) else list(value)
        if any(isinstance(item, bool | float) for item in items):
            raise ValueError
        counts = tuple(int(item) for item in items)
    except (TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"partition must be auto, even, or a list of layer counts such as 17,13, not {value!r}."
        ) from None
    if not counts or min(counts) < 1:
        raise ConfigError(f"partition must give every stage at least one layer, not {value!r}.")
    return counts


def parse_bytes(value: int | str) -> int:
    """Bytes from a number or a string such as ``"500MB"``, ``"2GB"`` or ``"1.5GiB"``."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if match:
            unit = match.group(2) or ""
            size = int(float(match.group(1)) * (_UNITS | _BINARY_UNITS)[unit])
            if size > 0:
                return size
    raise ConfigError(
        f"a memory size must be a positive number of bytes or a string such as 2GB, not {value!r}."
    )


def _dtype_name(dtype: Any) -> str:
    """Accepts ``torch.bfloat16`` too, without importing torch."""
    return str(dtype).removeprefix("torch.")
