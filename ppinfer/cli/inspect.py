"""``ppinfer inspect``: what each stage of a pipeline would hold, from a checkpoint's header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.options import Model, engine_options, takes

if TYPE_CHECKING:
    from ppinfer.config import EngineConfig
    from ppinfer.models.config import ModelConfig


@dataclass(frozen=True)
class StagePart:
    """One stage's share. ``last_layer`` is exclusive; a tied matrix counts on both of its stages.

    ``weight_bytes`` are those in memory at the chosen dtype, ``file_bytes`` those to be read.
    """

    stage: int
    first_layer: int
    last_layer: int
    parameters: int
    weight_bytes: int
    file_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Inspection:
    model: str
    architecture: str
    dtype: str
    num_layers: int
    parameters: int
    max_position: int
    pp_size: int
    stages: tuple[StagePart, ...]


@takes(engine_options("pp_size", "dtype", "partition", "load_format"))
def inspect(
    model: Model,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings: dict[str, Any],
) -> None:
    """Show how a model would be cut, without loading it."""
    from ppinfer.config import EngineConfig

    found = look(model, EngineConfig.from_settings(settings))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show(found)


def look(name: str, config: EngineConfig) -> Inspection:
    """Read the header and cut the model as the engine would, were memory no limit."""
    from ppinfer.engine.setup import layer_costs
    from ppinfer.models.policy import policy_for
    from ppinfer.schedule.partition import partition_layers
    from ppinfer.weights.checkpoint import open_checkpoint, stage_tensors
    from ppinfer.weights.resolve import resolve_model

    checkpoint = open_checkpoint(resolve_model(name), config.load_format)
    policy = policy_for(checkpoint.architectures)
    model = policy.model_config(checkpoint.config)
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    ranges = partition_layers(layer_costs(model, dtype), config.pp_size, config.partition)
    stages = []
    for stage, (first, last) in enumerate(ranges):
        tensors = stage_tensors(checkpoint, policy, model, first, last)
        stages.append(_part(stage, first, last, model, dtype, _file_bytes(tensors.entries)))
    return Inspection(
        model=name,
        architecture=model.architecture,
        dtype=dtype,
        num_layers=model.num_layers,
        parameters=model.total_parameters,
        max_position=model.max_position,
        pp_size=config.pp_size,
        stages=tuple(stages),
    )


def _part(
    stage: int, first: int, last: int, model: ModelConfig, dtype: str, file_bytes: int
) -> StagePart:
    itemsize = 4 if dtype == "fp32" else 2
    parameters = model.stage_parameters(first, last)
    return StagePart(
        stage=stage,
        first_layer=first,
        last_layer=last,
        parameters=parameters,
        weight_bytes=parameters * itemsize,
        file_bytes=file_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(last - first, itemsize),
    )


def _file_bytes(entries: Any) -> int:
    return sum(entry.num_bytes for entry in entries)


def _show(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{found.model}: {found.architecture}, {found.parameters / 1e6:,.1f} M parameters, "
        f"{found.num_layers} layers, {found.max_position:,} positions, {found.dtype}",
        highlight=False,
    )
    table = Table()
    table.add_column("Stage")
    for title in ("Layers", "Count", "Parameters", "Weights", "To read", "KV a token"):
        table.add_column(title, justify="right")
    for part in found.stages:
        table.add_row(
            str(part.stage),
            f"{part.first_layer}-{part.last_layer - 1}",
            str(part.last_layer - part.first_layer),
            f"{part.parameters / 1e6:,.1f} M",
            human_bytes(part.weight_bytes),
            human_bytes(part.file_bytes),
            human_bytes(part.kv_bytes_per_token),
        )
    console.print(table)
    held = sum(part.parameters for part in found.stages)
    if held > found.parameters:
        console.print(
            "Embedding and head share one matrix, but each needs its own layout of it: "
            f"{(held - found.parameters) / 1e6:,.1f} M parameters are held twice.",
            highlight=False,
        )


def human_bytes(count: float) -> str:
    """Decimal units, as memory is given to ``--kv-cache-memory``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
