"""Imports point downward only, and looking at ppinfer costs nothing: the imports are read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppinfer

ROOT = Path(ppinfer.__file__).parent
LAYERS = {
    "version": 0, "errors": 0, "config": 0, "request": 0, "sampling": 0, "grammar": 0,
    "messages": 0, "percentile": 0, "progress": 0,
    "schedule": 1, "trace": 1, "planner": 1,
    "models": 2, "weights": 2, "kernels": 2,
    "comm": 3,
    "stage": 4,
    "client": 4,
    "engine": 5, "launch": 5,
    "batch": 6, "bench": 6, "timeline": 6, "server": 6, "cli": 6,
}  # fmt: skip
TORCH_FREE = (
    "schedule", "planner", "trace", "version", "errors", "config", "request", "sampling", "grammar",
    "messages", "percentile", "progress",
)  # fmt: skip
STRANGERS = {"models": {"comm"}, "weights": {"comm"}, "kernels": {"comm"}, "comm": {
    "models", "weights", "kernels",
}}  # fmt: skip
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    own = room(path)
    assert own in LAYERS, f"{own} has no layer; add it to the table"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "ppinfer" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= LAYERS[own], f"{own} imports {name} from a layer above"
            assert parts[1] not in STRANGERS.get(own, set()), f"{own} must not know {parts[1]}"
        if own in TORCH_FREE:
            assert parts[0] not in ("torch", "numpy"), f"{own} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_and_no_foreign_code(path: Path) -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "multiprocessing"}
    assert not {name.split(".")[0] for name in imported(path)} & forbidden


def test_every_public_name_is_there() -> None:
    for name in ppinfer.__all__:
        assert getattr(ppinfer, name) is not None
    assert set(ppinfer.__all__) <= set(dir(ppinfer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ppinfer.nothing


@pytest.mark.parametrize(
    "statement",
    [
        "import ppinfer",
        "import ppinfer.schedule.generate, ppinfer.schedule.partition",
        "import ppinfer.engine.engine",
        "import ppinfer.cli",
        "import ppinfer.bench.published_tables, ppinfer.cli.bench_published",
    ],
)
def test_torch_is_not_imported_by(statement: str) -> None:
    """The driver needs no torch, and a stage imports its own: so a pipeline starts faster."""
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
