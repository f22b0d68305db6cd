"""Where a benchmark's results go: files while it goes on, standard output at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ppinfer.cli.terminal import Bar
from ppinfer.errors import ConfigError

if TYPE_CHECKING:
    from ppinfer.bench.tables import Table

_KEY, _HIDDEN = "--api-key", "***"


class Outcome:
    """Where results go: files while it goes on, standard output at the end."""

    def __init__(self, benchmark: str, output: Path | None, plot: Path | None, bar: Bar) -> None:
        from ppinfer.bench.conditions import conditions

        self.notice = bar.show
        self._output, self._plot = output, plot
        self._benchmark, self._conditions = benchmark, conditions()
        self._results: Any = []
        self._tables: Sequence[Table] = ()

    def keep(self, results: Any, tables: Sequence[Table]) -> None:
        """The results so far take the place of those before, in files too."""
        from ppinfer.bench.conditions import in_words
        from ppinfer.bench.files import save_json, save_text
        from ppinfer.bench.tables import markdown

        self._results, self._tables = results, tables
        if self._output is not None:
            save_json(self._output.with_suffix(".json"), self._object())
            words = in_words(self._conditions)
            text = f"# {self._benchmark.capitalize()}\n\n{words}\n\n{markdown(tables)}"
            save_text(self._output.with_suffix(".md"), text)

    def draw(self, picture: Any) -> None:
        if self._plot is not None:
            picture(self._plot)

    def show(self, as_json: bool) -> None:
        if as_json:
            print(msgspec.json.encode(self._object()).decode())
            return
        from rich.console import Console

        from ppinfer.bench.conditions import in_words
        from ppinfer.bench.tables import show

        console = Console()
        show(self._tables, console)
        console.print(in_words(self._conditions), style="dim", highlight=False)

    def _object(self) -> dict[str, Any]:
        return {
            "benchmark": self._benchmark,
            "conditions": self._conditions,
            "arguments": without_keys(sys.argv[1:]),
            "results": msgspec.to_builtins(self._results),
        }


@contextmanager
def outcome(
    benchmark: str, as_json: bool, output: Path | None, plot: Path | None
) -> Iterator[Outcome]:
    """Refuses what could not be written before the work, and shows the results after it."""
    for path in filter(None, (output, plot)):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {path.parent} to write {path.name} into.")
    if plot is not None:
        from ppinfer.bench.plots import require_matplotlib

        require_matplotlib()
    with Bar() as bar:
        found = Outcome(benchmark, output, plot, bar)
        yield found
    found.show(as_json)


def without_keys(arguments: Sequence[str]) -> list[str]:
    """As they were given, but for what must not be written down."""
    shown: list[str] = []
    for argument in arguments:
        name, sign, _ = argument.partition("=")
        if shown and shown[-1] == _KEY:
            argument = _HIDDEN
        elif name == _KEY and sign:
            argument = f"{_KEY}={_HIDDEN}"
        shown.append(argument)
    return shown
