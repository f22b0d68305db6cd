"""``ppinfer bench serve``: a load on an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ppinfer.cli.bench_output import outcome
from ppinfer.cli.terminal import EXIT_ERROR

_REQUESTS = 100


def serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8000.")],
    *,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests/s that arrive at random, a list such as 1,2,4,inf."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests in flight at any time, a list such as 1,8,32.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help=f"Requests of each level; {_REQUESTS} without --seconds."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Send for so long at each level.")
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="128, a range 16-700, or lognormal:MEDIAN:SIGMA[:MAX].")
    ] = "128",
    output_tokens: Annotated[str, typer.Option(help="Most tokens of an answer, likewise.")] = "64",
    shared_prefix: Annotated[
        int, typer.Option(min=0, help="Tokens that all prompts begin with, before their own.")
    ] = 0,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Prompts of a file: ShareGPT's JSON, or JSON lines with prompt/messages."
        ),
    ] = None,
    endpoint: Annotated[
        Literal["chat", "completions"], typer.Option(help="Which one answers.")
    ] = "chat",
    model: Annotated[
        str, typer.Option(help="Its name there; the first of /v1/models if not given.")
    ] = "",
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="What the server lets in.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers go on to their full length.")
    ] = False,
    slo: Annotated[
        str | None,
        typer.Option(help="What counts as good, such as ttft=500ms,itl=50ms; also tpot, e2e."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a request has failed.")
    ] = 600.0,
    seed: Annotated[
        int, typer.Option(help="Another seed, other prompts: a server may know those of before.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="STEM", help="Write STEM.json and STEM.md, also while it goes on."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a picture.")] = None,
) -> None:
    """Put a load on an OpenAI-compatible server, and time its streamed answers.

    Latency counts from when a request was to arrive. Ctrl-C reports what there is.
    """
    from ppinfer.bench.serve.arrivals import Extent, parse_loads
    from ppinfer.bench.serve.dataset import read_dataset
    from ppinfer.bench.serve.lengths import parse_lengths
    from ppinfer.bench.serve.objective import parse_objective
    from ppinfer.bench.serve.plan import Plan
    from ppinfer.bench.serve.target import Dialect, Target
    from ppinfer.client.address import require_aiohttp, root_of

    if requests is None and seconds is None:
        requests = _REQUESTS
    plan = Plan(
        target=Target(root_of(url), endpoint, model, Dialect(ignore_eos)),
        api_key=api_key,
        loads=parse_loads(rate, concurrency),
        extent=Extent(requests, seconds),
        prompt=parse_lengths(prompt_tokens, "prompt-tokens"),
        output=parse_lengths(output_tokens, "output-tokens"),
        entries=() if dataset is None else read_dataset(dataset),
        shared_prefix=shared_prefix,
        seed=seed,
        objective=None if slo is None else parse_objective(slo),
        timeout=timeout,
    )
    require_aiohttp()

    from ppinfer.bench.plots import plot_lines
    from ppinfer.bench.serve import report
    from ppinfer.bench.serve.run import measure_serve

    with outcome("serve", as_json, output, plot) as out:
        found = measure_serve(plan, lambda now: out.keep(now, report.tables(now)), out.notice)
        out.draw(lambda path: plot_lines(report.panels(found), path, columns=2))
    if found.interrupted:
        raise KeyboardInterrupt
    if not any(level.done for level in found.levels):
        raise typer.Exit(EXIT_ERROR)
