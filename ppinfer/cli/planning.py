"""What ``plan`` and ``simulate`` share: a model's sizes, devices and links, and what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppinfer.errors import ConfigError

if TYPE_CHECKING:
    from ppinfer.planner.hardware import Device, Link
    from ppinfer.planner.shape import ModelShape
    from ppinfer.planner.traffic import Arrival

DEFAULT_LINK = "pcie4"

PlannedModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder (its config.json is enough), a .gguf file, a hub id, demo, or a name such "
        "as llama-7b, llama-70b, llama-405b.",
        show_default=False,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        metavar="NAME:COUNT,…",
        help="Devices in the order of the pipeline, such as a10:2 or a100-80:1,l4:2.",
        show_default=False,
    ),
]
LinkNames = Annotated[
    str,
    typer.Option(
        metavar="NAME,…", help="What joins them: one link for all, or one between each two."
    ),
]
PromptLength = Annotated[
    str, typer.Option(metavar="TOKENS", help="Tokens of a prompt, or a range such as 100-900.")
]
NewLength = Annotated[
    str, typer.Option("--new", metavar="TOKENS", help="Tokens of an output, or a range.")
]
Requests = Annotated[int, typer.Option(min=1, help="How many requests there are.")]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="PER SECOND", help="Let them come at random; default: all are there at the start."
    ),
]
Seed = Annotated[int, typer.Option(help="Of lengths and times that are drawn.")]
HardwareFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE.toml", help="More devices and links, in the form of the built-in."),
]


def read_shape(name: str, dtype: str) -> tuple[ModelShape, str]:
    """A model's sizes, and its dtype if that is to be the checkpoint's own.

    Raises:
        CheckpointError: there is no such model, or none that can be run.
    """
    from ppinfer.bench.named import CONFIGS, opened
    from ppinfer.cli.options import model_name
    from ppinfer.models.policy import policy_for
    from ppinfer.weights.checkpoint import open_checkpoint
    from ppinfer.weights.resolve import resolve_model

    if name in CONFIGS:
        with opened(name) as subject:
            config = subject.config
    else:
        checkpoint = open_checkpoint(resolve_model(name), "dummy")
        config = policy_for(checkpoint.architectures).model_config(checkpoint.config)
    return config.shape(model_name(name)), config.dtype if dtype == "auto" else dtype


def read_hardware(
    devices: str, link: str, hardware: Path | None
) -> tuple[list[Device], list[Link]]:
    """Devices in the order of the pipeline, and what joins each to the next.

    Raises:
        ConfigError: an unknown one, a wrong number of them, or a file that is none.
    """
    from ppinfer.planner.hardware import load_catalog

    catalog = load_catalog(hardware)
    chosen = catalog.parse_devices(devices)
    return chosen, catalog.parse_links(link, len(chosen))


def read_arrivals(
    prompt: str, new: str, requests: int, rate: float | None, seed: int
) -> tuple[Arrival, ...]:
    """Raises ``ConfigError`` where a length is none."""
    from ppinfer.planner.traffic import arrivals

    prompts, outputs = _bounds("prompt", prompt), _bounds("new", new)
    return tuple(arrivals(requests, prompts, outputs, rate=rate, seed=seed))


def _bounds(what: str, written: str) -> tuple[int, int]:
    low, dash, high = written.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise ConfigError(
            f"--{what} must be a number of tokens, or a range such as 100-900, not {written!r}."
        ) from None
