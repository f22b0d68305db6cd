"""``ppinfer plan``: which split of a model over which devices, and what to expect of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ppinfer.cli import planning
from ppinfer.cli.options import engine_options, takes
from ppinfer.cli.terminal import Bar, refuse_usage


@takes(
    engine_options(
        "dtype", "partition", "max_num_seqs", "num_micro_batches", "max_prefill_tokens",
        "kv_cache_memory", "block_size",
    )
)  # fmt: skip
def plan(
    model: planning.PlannedModel,
    *,
    devices: planning.Devices,
    link: planning.LinkNames = planning.DEFAULT_LINK,
    prompt: planning.PromptLength = "512",
    new: planning.NewLength = "128",
    requests: planning.Requests = 32,
    rate: planning.Rate = None,
    seed: planning.Seed = 0,
    hardware: planning.HardwareFile = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object, which other commands take with --plan FILE."
        ),
    ] = False,
    settings: dict[str, Any],
) -> None:
    """Find the best pipeline of some devices without having them, and say what to expect.

    The engine's own schedule runs in modelled time: how many micro-batches, which chunks, where to
    cut. Beside it stand the alternatives, and a plain answer to whether a pipeline is worth it.
    With --devices here this machine is measured, and the prediction is checked by running it.
    """
    arrivals = planning.read_arrivals(prompt, new, requests, rate, seed)
    if devices.partition(":")[0] == "here":
        if hardware is not None or link != planning.DEFAULT_LINK:
            raise refuse_usage("This machine is measured: --link and --hardware say nothing of it.")
        from ppinfer.cli.plan_here import plan_here

        plan_here(model, devices, arrivals, settings, as_json)
        return

    from ppinfer.planner.choice import Question
    from ppinfer.planner.plan import make_plan

    shape, dtype = planning.read_shape(model, settings.pop("dtype", "auto"))
    chosen, links = planning.read_hardware(devices, link, hardware)
    question = Question(
        model=shape, dtype=dtype, arrivals=arrivals, settings=tuple(sorted(settings.items()))
    )
    with Bar() as bar:
        found = make_plan(question, chosen, links, bar.show)
    if as_json:
        from ppinfer.cli.plan_file import as_text

        print(as_text(found, model))
    else:
        from rich.console import Console

        from ppinfer.cli.plan_tables import show_plan

        show_plan(found, Console(highlight=False))
