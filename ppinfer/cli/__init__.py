"""The command line. Data goes to standard output, everything else to standard error.

Commands import what they need when they run: ``ppinfer --help`` loads neither torch nor Jinja.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ppinfer.cli import (
    batch,
    bench,
    chat,
    doctor,
    generate,
    inspect,
    plan,
    serve,
    simulate,
    timeline,
)
from ppinfer.cli.terminal import guarded
from ppinfer.version import __version__


def _unwrapped(docstring: str | None) -> str:
    """Paragraphs as one line each; the terminal decides where they break."""
    paragraphs = (docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


app = typer.Typer(
    help="Pipeline-parallel inference for large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    generate.generate,
    chat.chat,
    serve.serve,
    batch.batch,
    inspect.inspect,
    plan.plan,
    simulate.simulate,
    timeline.timeline,
    doctor.doctor,
):
    app.command(help=_unwrapped(_command.__doc__))(guarded(_command))
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ppinfer {__version__}")
        raise typer.Exit


@app.callback()
def _ppinfer(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the program ``ppinfer``."""
    for stream in (sys.stdout, sys.stderr):
        # Text of a model may hold what a terminal's encoding lacks; that is no reason to stop.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="ppinfer")
