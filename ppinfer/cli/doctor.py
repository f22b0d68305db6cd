"""``ppinfer doctor``: what this machine has, what is slow on it, and whether rows are exact."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppinfer.cli.terminal import EXIT_ERROR

if TYPE_CHECKING:
    from rich.table import Table

_SECTIONS = {
    "versions": "Versions",
    "processor": "Processor",
    "memory": "Memory",
    "devices": "Devices",
    "backends": "Backends",
    "tools": "Tools",
    "kernels": "Kernels",
    "row_invariance": "Row invariance",
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this machine: versions, devices, what will be slow and why.

    Also runs the kernels: the same row alone and in a batch must give the same bits.
    """
    from ppinfer.cli.machine import examine

    found = examine()
    if as_json:
        print(json.dumps(found))
    else:
        _show(found)
    if found["problems"]:
        raise typer.Exit(EXIT_ERROR)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    for kind, style, title in (
        ("problems", "red", "Does not work:"),
        ("slow", "yellow", "Good to know:"),
    ):
        if found[kind]:
            console.print(title, style=style)
        for sentence in found[kind]:
            console.print(f"  - {sentence}", highlight=False, markup=False)
    if not found["problems"]:
        console.print("Everything that ppinfer needs is here.", style="green")


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, show_lines=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, title in _SECTIONS.items():
        for number, (name, value) in enumerate(found[key].items()):
            table.add_row(title if number == 0 else "", name, _words(value))
        table.add_section()
    return table


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)
