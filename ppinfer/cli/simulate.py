"""``ppinfer simulate``: one pipeline, as it is set, in modelled time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppinfer.cli import planning
from ppinfer.cli.options import engine_options, takes
from ppinfer.cli.terminal import say
from ppinfer.cli.tracing import TraceFile, check_trace


@takes(
    engine_options(
        "dtype", "partition", "micro_batch_size", "num_micro_batches", "max_num_seqs",
        "max_prefill_tokens", "kv_cache_memory", "block_size",
    )
)  # fmt: skip
def simulate(
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
    trace: TraceFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the stages' lanes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings: dict[str, Any],
) -> None:
    """Run the real schedule on devices that are not there, in modelled time.

    What is left open is tuned as the engine would. The trace has the form of a measured one.
    """
    from ppinfer.config import EngineConfig
    from ppinfer.planner.assemble import assemble
    from ppinfer.planner.choice import Question
    from ppinfer.planner.simulate import simulate as run

    check_trace(trace)
    arrivals = planning.read_arrivals(prompt, new, requests, rate, seed)
    shape, dtype = planning.read_shape(model, settings.pop("dtype", "auto"))
    chosen, links = planning.read_hardware(devices, link, hardware)
    question = Question(model=shape, dtype=dtype, arrivals=arrivals)
    config = EngineConfig.from_settings({"pp_size": len(chosen), **settings})
    assembled = assemble(
        shape,
        chosen,
        links,
        dtype,
        config,
        context=question.typical_context,
        efficiency=question.efficiency,
    )
    found = run(assembled.pipeline, arrivals, trace=trace is not None or plot is not None)
    if found.trace is not None:
        names = ", ".join(dict.fromkeys(device.name for device in chosen))
        found.trace.info.update(model=shape.name, dtype=dtype, devices=f"{names} (simulated)")
    if trace is not None:
        from ppinfer.trace.chrome import write_trace

        assert found.trace is not None
        write_trace(found.trace, trace)
        say(f"trace: {trace} (show it: ppinfer timeline {trace}, or at ui.perfetto.dev)")
    if plot is not None:
        from ppinfer.timeline.plot import save_png
        from ppinfer.trace.analysis import analyse
        from ppinfer.trace.intervals import run_interval

        assert found.trace is not None
        save_png(found.trace, analyse(found.trace), run_interval(found.trace), plot)
    if as_json:
        import msgspec

        print(msgspec.json.encode(_figures(found)).decode())
    else:
        from rich.console import Console

        from ppinfer.bench.tables import show
        from ppinfer.cli.plan_tables import expectation, stage_table

        console = Console(highlight=False)
        for choice in assembled.pipeline.tuning.choices:
            console.print(f"chosen: {choice}")
        console.print(expectation(found))
        show([stage_table(assembled, found)], console)


def _figures(found: Any) -> dict[str, Any]:
    """Everything but the trace, which has a file of its own."""
    from dataclasses import asdict, replace

    return {"tokens_per_second": found.throughput, **asdict(replace(found, trace=None))}
