"""``ppinfer bench``: how fast a model runs here, beside what else could run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ppinfer.cli.bench_output import outcome
from ppinfer.cli.bench_predictions import predictions
from ppinfer.cli.bench_published import published
from ppinfer.cli.bench_serve import serve
from ppinfer.cli.options import engine_options, takes
from ppinfer.cli.plan_file import read_settings
from ppinfer.cli.terminal import guarded
from ppinfer.errors import ConfigError

app = typer.Typer(
    help="Measure this machine: throughput, latency, transports, loading and more.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

_MODEL_HELP = "A folder, a .gguf file, demo, or llama-7b, llama-13b, toy, … (made-up weights)."
_Models = Annotated[list[str], typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
_Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
_Plan = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A row with the settings of ppinfer plan --json as well."),
]
_Output = Annotated[
    Path | None,
    typer.Option(metavar="STEM", help="Write STEM.json and STEM.md, also while it goes on."),
]
_Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a picture.")]
_Sizes = Annotated[str, typer.Option("--pp-sizes", "-pp", help="Pipeline sizes, such as 1,2,4.")]
_Dtypes = Annotated[str, typer.Option(help="bf16, fp32, or both: bf16,fp32.")]
_Dtype = Annotated[str, typer.Option(help="bf16 or fp32.")]
_Repeats = Annotated[int, typer.Option(min=1, help="Counted runs of each cell.")]
_Hf = Annotated[bool, typer.Option("--hf/--no-hf", help="Compare with Hugging Face generate.")]
_MaxCell = Annotated[
    float, typer.Option(help="Skip a cell whose runs are expected to take more seconds.")
]
_MemoryLimit = Annotated[
    str | None,
    typer.Option(help="Address space of each process, such as 8GB; beyond it a cell is OOM."),
]
_engine_settings = engine_options("comm", "max_prefill_tokens", "threads")


@takes(_engine_settings)
def throughput(
    models: _Models,
    *,
    shapes: Annotated[
        str, typer.Option(help="Batch x prompt tokens x new tokens, a list.")
    ] = "32x128x64,16x512x64,8x128x64,1x128x64",
    pp_sizes: _Sizes = "1,2",
    micro_batches: Annotated[
        str, typer.Option(help="Numbers of micro-batches; auto is the engine's own choice.")
    ] = "auto",
    dtypes: _Dtypes = "bf16,fp32",
    repeats: _Repeats = 3,
    plan: _Plan = None,
    hf: _Hf = True,
    max_cell_seconds: _MaxCell = 120.0,
    memory_limit: _MemoryLimit = None,
    as_json: _AsJson = False,
    output: _Output = None,
    plot: _Plot = None,
    settings: dict[str, Any],
) -> None:
    """Compare pipelines with Hugging Face generate.

    Rows take turns, each in a process of its own; figures are medians with their range, and
    ratios are taken turn by turn.
    """
    from ppinfer.bench import cases, plots, throughput_table
    from ppinfer.bench.named import opened
    from ppinfer.bench.records import Comparison
    from ppinfer.bench.throughput import compare_rows

    wanted_shapes, wanted_dtypes = cases.parse_shapes(shapes), cases.parse_dtypes(dtypes)
    rows = cases.rows_of(
        cases.parse_counts(pp_sizes, "pp-sizes"),
        cases.parse_micro_batches(micro_batches),
        hf,
        None if plan is None else read_settings(plan),
    )
    protocol = _protocol(repeats, max_cell_seconds, memory_limit, settings)
    done: list[Comparison] = []
    with outcome("throughput", as_json, output, plot) as out:
        for name in models:
            with opened(name) as subject:
                for dtype in wanted_dtypes:
                    done.append(Comparison(name, dtype, None, []))
                    for done[-1] in compare_rows(
                        subject, dtype, wanted_shapes, rows, protocol, out.notice
                    ):
                        out.keep(done, throughput_table.tables(done))
        out.draw(lambda path: plots.plot_throughput(done, path))


@takes(_engine_settings)
def latency(
    model: _Model,
    *,
    prompts: Annotated[str, typer.Option(help="Prompt lengths, in tokens.")] = "32,128,512",
    new: Annotated[int, typer.Option(min=2, help="Tokens that each request gets.")] = 64,
    contexts: Annotated[
        str, typer.Option(help="Contexts after which decoding is timed; none for none.")
    ] = "128,256,512,1024,2048,4096",
    pp_sizes: _Sizes = "1,2",
    dtype: _Dtype = "bf16",
    repeats: _Repeats = 3,
    hf: _Hf = True,
    max_cell_seconds: _MaxCell = 120.0,
    memory_limit: _MemoryLimit = None,
    as_json: _AsJson = False,
    output: _Output = None,
    plot: _Plot = None,
    settings: dict[str, Any],
) -> None:
    """Time one request at a time, and decoding against context."""
    from ppinfer.bench import cases, plots
    from ppinfer.bench import latency as bench
    from ppinfer.bench.named import opened

    rows = cases.rows_of(cases.parse_counts(pp_sizes, "pp-sizes"), hf=hf)
    protocol = _protocol(repeats, max_cell_seconds, memory_limit, settings, ceiling=False)
    lengths = cases.parse_counts(prompts, "prompts")
    depths = () if contexts == "none" else cases.parse_counts(contexts, "contexts")
    (kind,) = _one(cases.parse_dtypes(dtype), "dtype")
    with outcome("latency", as_json, output, plot) as out, opened(model) as subject:
        for found in bench.measure_latency(
            subject, kind, rows, lengths, new, depths, protocol, out.notice
        ):
            out.keep(found, bench.tables(found))
        out.draw(lambda path: plots.plot_lines(bench.panels(found), path))


def comm(
    *,
    stages: Annotated[str, typer.Option(help="Numbers of stages.")] = "2,3,4",
    sizes: Annotated[
        str, typer.Option(help="Bytes of a message: from a decode step's to a prefill's.")
    ] = "18432,589824,2359296",
    compute_ms: Annotated[
        float, typer.Option(min=0.1, help="What each stage computes for a message.")
    ] = 5.0,
    repeats: _Repeats = 3,
    as_json: _AsJson = False,
    output: _Output = None,
) -> None:
    """Compare the transports between stages: how little does compute wait for them?"""
    from ppinfer.bench import cases
    from ppinfer.bench import comm as bench

    counts = cases.parse_counts(stages, "stages")
    if min(counts) < 2:
        raise ConfigError("A transport needs at least 2 stages.")
    messages = cases.parse_counts(sizes, "sizes")
    with outcome("comm", as_json, output, None) as out:
        for cells in bench.measure_comm(counts, messages, compute_ms / 1e3, repeats, out.notice):
            out.keep(cells, [bench.table(cells, compute_ms / 1e3)])


@takes(_engine_settings)
def scaling(
    model: _Model,
    *,
    shape: Annotated[str, typer.Option(help="Batch x prompt tokens x new tokens.")] = "32x128x64",
    pp_sizes: _Sizes = "1,2,4",
    micro_batches: Annotated[
        str, typer.Option(help="Numbers of micro-batches; auto is the engine's own choice.")
    ] = "auto,1,2,3,4,6,8",
    dtype: _Dtype = "bf16",
    repeats: _Repeats = 3,
    max_cell_seconds: _MaxCell = 120.0,
    memory_limit: _MemoryLimit = None,
    as_json: _AsJson = False,
    output: _Output = None,
    plot: _Plot = None,
    settings: dict[str, Any],
) -> None:
    """Throughput by pipeline size and number of micro-batches, and why it drops."""
    from ppinfer.bench import cases, plots
    from ppinfer.bench import scaling as bench
    from ppinfer.bench.named import opened
    from ppinfer.bench.throughput import compare_rows

    rows = cases.rows_of(
        cases.parse_counts(pp_sizes, "pp-sizes"), cases.parse_micro_batches(micro_batches), False
    )
    protocol = _protocol(repeats, max_cell_seconds, memory_limit, settings, ceiling=False)
    (kind,) = _one(cases.parse_dtypes(dtype), "dtype")
    work = _one(cases.parse_shapes(shape), "shape")
    with outcome("scaling", as_json, output, plot) as out, opened(model) as subject:
        for found in compare_rows(subject, kind, work, rows, protocol, out.notice):
            out.keep(found, bench.tables(found))
        out.draw(lambda path: plots.plot_lines(bench.panels(found), path))


def loading(
    *,
    layers: Annotated[
        str, typer.Option(help="Layers of each model; one has 44 million parameters.")
    ] = "2,4,8,16,24",
    pp_sizes: _Sizes = "1,2",
    dtype: _Dtype = "bf16",
    repeats: _Repeats = 2,
    memory_limit: _MemoryLimit = None,
    as_json: _AsJson = False,
    output: _Output = None,
    plot: _Plot = None,
) -> None:
    """Start-up time and peak memory against model size, with made-up weights."""
    from ppinfer.bench import cases, plots
    from ppinfer.bench import loading as bench

    (kind,) = _one(cases.parse_dtypes(dtype), "dtype")
    counts = cases.parse_counts(layers, "layers")
    sizes = cases.parse_counts(pp_sizes, "pp-sizes")
    limit = _protocol(1, 1.0, memory_limit, {}).memory_limit
    with outcome("loading", as_json, output, plot) as out:
        for cells in bench.measure_loading(counts, sizes, kind, repeats, limit, out.notice):
            out.keep(cells, [bench.table(cells, kind)])
        out.draw(lambda path: plots.plot_lines(bench.panels(cells), path))


def invariance(
    model: _Model,
    *,
    rows: Annotated[str, typer.Option(help="Rows of a product, a list.")] = "1,8,16,32,128,512",
    dtypes: _Dtypes = "bf16,fp32",
    repeats: _Repeats = 3,
    as_json: _AsJson = False,
    output: _Output = None,
) -> None:
    """What row-invariance costs: linear layers beside those that promise nothing."""
    from ppinfer.bench import cases
    from ppinfer.bench import invariance as bench
    from ppinfer.bench.named import opened

    counts, kinds = cases.parse_counts(rows, "rows"), cases.parse_dtypes(dtypes)
    with outcome("invariance", as_json, output, None) as out, opened(model) as subject:
        for found in bench.measure_invariance(subject, kinds, counts, repeats, out.notice):
            out.keep(found, [bench.table(found, model)])


def driver(
    model: _Model = "demo",
    *,
    sequences: Annotated[
        str, typer.Option(help="Numbers of sequences that run together.")
    ] = "32,512",
    micro_batches: Annotated[
        str, typer.Option(help="Numbers of micro-batches, over which they are spread.")
    ] = "1,2",
    new: Annotated[int, typer.Option(min=8, help="Tokens that each of them gets.")] = 64,
    repeats: _Repeats = 3,
    as_json: _AsJson = False,
    output: _Output = None,
) -> None:
    """What a step costs the driver: plan, results, text. Stages are made up and answer at once."""
    from ppinfer.bench import cases
    from ppinfer.bench import driver as bench
    from ppinfer.bench.named import opened

    counts = cases.parse_counts(sequences, "sequences")
    slots = cases.parse_counts(micro_batches, "micro-batches")
    with outcome("driver", as_json, output, None) as out, opened(model) as subject:
        for cells in bench.measure_driver(subject, counts, slots, new, repeats, out.notice):
            out.keep(cells, [bench.table(cells, subject.name)])


for _command in (
    throughput,
    latency,
    comm,
    scaling,
    loading,
    driver,
    invariance,
    serve,
    published,
    predictions,
):
    app.command(help=" ".join((_command.__doc__ or "").split()))(guarded(_command))


def _protocol(
    repeats: int,
    max_cell_seconds: float,
    memory_limit: str | None,
    settings: dict[str, Any],
    ceiling: bool = True,
) -> Any:
    from ppinfer.bench.throughput import Protocol
    from ppinfer.config import EngineConfig, parse_bytes

    EngineConfig.from_settings(settings)  # what it refuses would otherwise fail in every cell
    limit = 0 if memory_limit is None else parse_bytes(memory_limit)
    return Protocol(repeats, max_cell_seconds, limit, ceiling, settings)


def _one(values: Sequence[Any], what: str) -> Sequence[Any]:
    if len(values) != 1:
        raise ConfigError(f"Give one {what}, not {len(values)}.")
    return values
