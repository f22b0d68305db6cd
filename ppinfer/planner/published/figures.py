"""The published tables, cell by cell."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from ppinfer.planner.hardware import Device, Link, load_catalog
from ppinfer.planner.shape import ModelShape

GIB = 1 << 30

PIPELINE, HUGGING_FACE = "pipeline", "hugging_face"
NAMES = (PIPELINE, HUGGING_FACE)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One workload, and the figure of each system.

    Attributes:
        column: as it is written: ``8(4)`` is a batch of 8 in micro-batches of 4.
        figures: output tokens/s of the whole run by system; ``None`` is out of memory.
    """

    model: ModelShape
    dtype: str
    prompt: int
    new: int
    batch: int
    micro_batch: int
    figures: Mapping[str, float | None]

    @property
    def column(self) -> str:
        return f"{self.batch}({self.micro_batch})"

    @property
    def new_tokens(self) -> int:
        """Of the whole batch."""
        return self.batch * self.new


@dataclass(frozen=True, kw_only=True)
class Figures:
    """``usable_gib`` is what of each of the two devices the source says is usable."""

    source: str
    device: Device
    link: Link
    usable_gib: float
    cells: tuple[Cell, ...]

    def with_memory(self, gib: float) -> Device:
        """The device with so much of its memory usable."""
        return replace(self.device, usable=int(gib * GIB))


@cache
def load_figures() -> Figures:
    own = resources.files("ppinfer.planner.published").joinpath("figures.toml")
    table = tomllib.loads(own.read_text(encoding="utf-8"))
    models = {name: _shape(name, entry) for name, entry in table["model"].items()}
    catalog = load_catalog()
    return Figures(
        source=table["source"],
        device=catalog.device(table["device"]),
        link=catalog.link(table["link"]),
        usable_gib=table["usable_gib"],
        cells=tuple(
            cell for entry in table["table"] for cell in _cells(entry, models[entry["model"]])
        ),
    )


def _cells(table: dict[str, Any], model: ModelShape) -> list[Cell]:
    cells = []
    for row in table["rows"]:
        for index, column in enumerate(table["columns"]):
            batch, _, micro_batch = column.removesuffix(")").partition("(")
            values = {system: row[system][index] for system in NAMES}
            cells.append(
                Cell(
                    model=model,
                    dtype=table["dtype"],
                    prompt=row["prompt"],
                    new=row["new"],
                    batch=int(batch),
                    micro_batch=int(micro_batch),
                    figures={k: None if v == "OOM" else float(v) for k, v in values.items()},
                )
            )
    return cells


def _shape(name: str, entry: dict[str, int]) -> ModelShape:
    """Llama: as many key heads as query heads, three matrices in the MLP, two norms a layer."""
    hidden, vocabulary = entry["hidden"], entry["vocabulary"]
    return ModelShape(
        name=name,
        num_layers=entry["layers"],
        hidden_size=hidden,
        layer_parameters=4 * hidden**2 + 3 * hidden * entry["inner"] + 2 * hidden,
        embedding_parameters=vocabulary * hidden,
        head_parameters=vocabulary * hidden + hidden,
        q_size=hidden,
        kv_size=hidden,
        vocab_size=vocabulary,
        max_position=entry["longest"],
    )
