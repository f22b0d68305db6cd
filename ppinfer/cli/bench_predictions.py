"""``ppinfer bench predictions``: is the simulator right about this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppinfer.cli.bench_output import outcome


def predictions(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a .gguf file, or demo.")
    ] = "demo",
    *,
    pp_sizes: Annotated[
        str, typer.Option("--pp-sizes", "-pp", help="Pipeline sizes, such as 1,2,4.")
    ] = "1,2,4",
    dtypes: Annotated[str, typer.Option(help="bf16, fp32, or both.")] = "bf16,fp32",
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each load, of short ones several a turn.")
    ] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="STEM", help="Write STEM.json and STEM.md, also while it goes on."),
    ] = None,
) -> None:
    """Simulate loads on this machine after a short calibration, then run them."""
    from ppinfer.bench import cases
    from ppinfer.bench import predictions as bench

    sizes, kinds = cases.parse_counts(pp_sizes, "pp-sizes"), cases.parse_dtypes(dtypes)
    with outcome("predictions", as_json, output, None) as out:
        for found in bench.predict_all(model, sizes, kinds, repeats, out.notice):
            out.keep(found, bench.tables(found))
