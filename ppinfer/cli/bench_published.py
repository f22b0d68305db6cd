"""``ppinfer bench published``: the planner held against published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppinfer.cli.bench_output import outcome


def published(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="STEM", help="Write STEM.json and STEM.md.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw a picture.")] = None,
) -> None:
    """Predict published figures of two other systems, and ppinfer's in their place.

    Measures nothing: a few parameters are fitted to half of the figures and judged on the others.
    """
    from ppinfer.bench import plots, published_tables
    from ppinfer.bench import published as bench

    with outcome("published", as_json, output, plot) as out:
        found = bench.find(out.notice)
        out.keep(bench.plain(found), published_tables.tables(found))
        out.draw(lambda path: plots.plot_lines(bench.panels(found), path, columns=2))
