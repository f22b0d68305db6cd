"""What a checkpoint holds, found out once by the driver; stages get their part of it as plain data.

A folder with ``config.json`` and safetensors (one file, or shards with an index), or one GGUF file.
Nothing of a checkpoint is ever executed: pickled weights are refused, and ``auto_map`` is ignored.
No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ppinfer.errors import CheckpointError
from ppinfer.messages import StageTensors, TensorEntry
from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import PipelinePolicy, stage_shapes
from ppinfer.weights import safetensors

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READABLE = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's files, read as far as their headers.

    Attributes:
        source: what to call it in messages.
        config: as in ``config.json`` (made from the metadata for GGUF); an end-of-sequence id in
            ``generation_config.json`` takes the place of the config's own, as in transformers.
        files: as stages open them.
        tensors: by Hugging Face name.
        generation_config: as in ``generation_config.json``, or empty.
        folder: where a tokenizer's files are, or ``None``.
        metadata: all keys of a GGUF file, tokenizer included, or ``None``.
        dummy: there are no tensors; stages make them up.
    """

    source: str
    config: Mapping[str, Any]
    files: tuple[str, ...] = ()
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    metadata: Mapping[str, Any] | None = None
    dummy: bool = False

    @property
    def architectures(self) -> tuple[str, ...]:
        names = self.config.get("architectures") or ()
        return tuple(names) if isinstance(names, list | tuple) else (str(names),)


def open_checkpoint(path: str | Path | Mapping[str, Any], load_format: str = "auto") -> Checkpoint:
    """Read the directory of the checkpoint at ``path``: a folder or a ``.gguf`` file.

    With ``load_format="dummy"`` only the config is read, and may be given itself.

    Raises:
        CheckpointError: files are missing, damaged or of a kind that is not read.
    """
    if isinstance(path, Mapping):
        if load_format != "dummy":
            raise CheckpointError("A config alone has no weights; use load_format='dummy'.")
        return Checkpoint(source="the given config", config=dict(path), dummy=True)
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return _open_gguf(path, load_format)
    if path.is_file() and any(path.match(pattern) for pattern in _PICKLES):
        raise _pickle_refused(path.name)
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a folder nor a .gguf file.")
    return _open_folder(path, load_format)


def stage_tensors(
    checkpoint: Checkpoint,
    policy: PipelinePolicy,
    config: ModelConfig,
    first_layer: int,
    last_layer: int,
) -> StageTensors:
    """What the stage of layers ``first_layer`` to ``last_layer`` (exclusive) reads, and from where.

    The whole checkpoint is held against the config first.

    Raises:
        CheckpointError: a tensor is missing, left over, mis-shaped, or of a type we cannot read.
    """
    if checkpoint.dummy:
        return StageTensors(files=(), entries=(), dummy=True)
    names = _checked_names(checkpoint, policy, config)
    entries = tuple(
        msgspec.structs.replace(checkpoint.tensors[names[canonical]], name=canonical)
        for canonical in stage_shapes(config, first_layer, last_layer)
    )
    used = sorted({entry.file for entry in entries})
    number = {file: i for i, file in enumerate(used)}
    return StageTensors(
        files=tuple(checkpoint.files[file] for file in used),
        entries=tuple(msgspec.structs.replace(e, file=number[e.file]) for e in entries),
    )


def _checked_names(
    checkpoint: Checkpoint, policy: PipelinePolicy, config: ModelConfig
) -> dict[str, str]:
    """Canonical to checkpoint name of the whole model, after checking every tensor."""
    source, tensors = checkpoint.source, checkpoint.tensors
    shapes = stage_shapes(config, 0, config.num_layers)
    names = {canonical: policy.checkpoint_name(canonical) for canonical in shapes}
    redundant = names["head.weight"] if config.tie_word_embeddings else None
    if redundant is not None:
        names["head.weight"] = names["embed.weight"]
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise CheckpointError(f"{source} lacks {_some(missing)}, which its config calls for.")
    known = set(names.values())
    left_over = [
        name
        for name in tensors
        if name not in known and name != redundant and not policy.may_be_left_over(name)
    ]
    if left_over:
        raise CheckpointError(
            f"{source} has {_some(left_over)}, which {type(policy).__name__} has no place for; "
            "the config may name the wrong architecture or number of layers."
        )
    for canonical, name in names.items():
        entry = tensors[name]
        if entry.shape != shapes[canonical]:
            raise CheckpointError(
                f"{source} has {name} of shape {entry.shape}, but the config makes it "
                f"{shapes[canonical]}."
            )
        if checkpoint.metadata is None and entry.dtype not in _READABLE:
            raise CheckpointError(
                f"{source} stores {name} as {entry.dtype}; supported are {', '.join(_READABLE)}."
            )
    return names


# -------------------------------------------------------------------- folders


def _open_folder(folder: Path, load_format: str) -> Checkpoint:
    config = _read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json.")
    generation = _read_json(folder / "generation_config.json") or {}
    if generation.get("eos_token_id") is not None:
        config["eos_token_id"] = generation["eos_token_id"]
    files: list[str] = []
    tensors: dict[str, TensorEntry] = {}
    if load_format != "dummy":
        files, tensors = _read_directories(folder)
    return Checkpoint(
        source=str(folder),
        config=config,
        files=tuple(files),
        tensors=tensors,
        generation_config=generation,
        folder=folder,
        dummy=load_format == "dummy",
    )


def _read_directories(folder: Path) -> tuple[list[str], dict[str, TensorEntry]]:
    if (folder / _WEIGHTS).exists():
        path = str((folder / _WEIGHTS).absolute())
        return [path], safetensors.read_directory(path)
    index = _read_json(folder / _INDEX)
    if index is None:
        pickles = [found.name for kind in _PICKLES for found in sorted(folder.glob(kind))]
        if pickles:
            raise _pickle_refused(pickles[0])
        raise CheckpointError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}.")
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(s, str) for s in where.values()):
        raise CheckpointError(f"{folder / _INDEX} has no usable weight_map.")
    files: list[str] = []
    found: dict[str, dict[str, TensorEntry]] = {}
    for shard in sorted(set(where.values())):
        # Only the name is judged: in a hub cache the files themselves are links to elsewhere.
        parts = PurePosixPath(shard).parts
        if not parts or shard.startswith("/") or ".." in parts or "\\" in shard or "\0" in shard:
            raise CheckpointError(f"{folder / _INDEX} names {shard!r}, which leaves the folder.")
        path = folder / shard
        if not path.exists():
            raise CheckpointError(f"{folder} lacks {shard}, which {_INDEX} names.")
        found[shard] = safetensors.read_directory(str(path.absolute()), len(files))
        files.append(str(path.absolute()))
    for name, shard in where.items():
        if name not in found[shard]:
            raise CheckpointError(f"{folder / _INDEX} says {name} is in {shard}, but it is not.")
    return files, {name: found[shard][name] for name, shard in where.items()}


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON table, or ``None`` where there is no such file."""
    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} holds no JSON table.")
    return table


def _pickle_refused(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is a pickle, which can run code when it is read; load it once with transformers "
        "and save it with save_pretrained(…), which writes safetensors."
    )


def _some(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


# -------------------------------------------------------------------- GGUF


def _open_gguf(path: Path, load_format: str) -> Checkpoint:
    from ppinfer.weights import gguf, gguf_header  # the gguf package is imported only if needed

    name = str(path.absolute())
    header = gguf_header.read_header(name)
    dummy = load_format == "dummy"
    return Checkpoint(
        source=str(path),
        config=gguf.hf_config(name, header),
        files=() if dummy else (name,),
        tensors={} if dummy else gguf.hf_tensors(header),
        metadata=header.metadata,
        dummy=dummy,
    )
