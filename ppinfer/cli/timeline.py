"""``ppinfer timeline``: what a trace shows, as lanes and tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppinfer.cli.terminal import refuse_usage, say
from ppinfer.errors import TraceError

if TYPE_CHECKING:
    from ppinfer.trace.analysis import Analysis
    from ppinfer.trace.intervals import Interval
    from ppinfer.trace.model import Trace

_FROM, _TO = "--from", "--to"


def timeline(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What --trace wrote.", show_default=False)
    ],
    *,
    start: Annotated[
        float | None, typer.Option(_FROM, metavar="SECONDS", help="Leave out what was before.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(_TO, metavar="SECONDS", help="Leave out what came after.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Draw a picture as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the lanes of a trace, and where its time went.

    Every stage has a row. Below come its bubbles by cause: of the whole run, and of its steady
    decode, where the pipeline neither fills nor drains. Seconds count from the trace's beginning.
    """
    from ppinfer.trace.analysis import analyse
    from ppinfer.trace.chrome import read_trace
    from ppinfer.trace.intervals import run_interval

    if start is not None and end is not None and start >= end:
        raise refuse_usage(f"{_FROM} must be before {_TO}.")
    trace = read_trace(file)
    run = run_interval(trace)
    shown = (
        run[0] if start is None else max(run[0], round(start * 1e9)),
        run[1] if end is None else min(run[1], round(end * 1e9)),
    )
    if run[0] == run[1]:
        raise TraceError(f"{file} holds no step of any stage.")
    if shown[0] >= shown[1]:
        raise TraceError(
            f"Nothing is there to show: the run goes from {run[0] / 1e9:g} to {run[1] / 1e9:g} s."
        )
    analysis = analyse(trace, (shown[0] / 1e9, shown[1] / 1e9))
    for lane in trace.lanes:
        if lane.dropped:
            say(f"warning: {lane.name} made {lane.dropped:,} spans more than a trace keeps.")
        if lane.clock_error:
            say(f"note: {lane.name} may be shifted by up to {lane.clock_error / 1e6:.3f} ms.")
    if png is not None:
        from ppinfer.timeline.plot import save_png

        save_png(trace, analysis, shown, png)
    if as_json:
        print(json.dumps({"info": trace.info, **asdict(analysis)}))
    else:
        _show(trace, analysis, shown)


def _show(trace: Trace, analysis: Analysis, shown: Interval) -> None:
    from rich.console import Console

    from ppinfer.timeline.lanes import closer, is_coarse, lanes
    from ppinfer.timeline.tables import bubble_table, describe, sections, time_table

    console = Console(highlight=False)
    console.print(trace.title, style="bold")
    for title, section in sections(analysis):
        console.print(describe(title, section))
    console.print()
    console.print(lanes(trace, shown, console.width))
    if is_coarse(trace, shown, console.width):
        steady = analysis.steady or analysis.total
        inside = closer(trace, (int(steady.start * 1e9), int(steady.end * 1e9)))
        console.print("\nA closer look", style="bold")
        console.print(lanes(trace, inside, console.width))
    console.print()
    console.print(time_table(analysis))
    console.print()
    console.print(bubble_table(analysis))
