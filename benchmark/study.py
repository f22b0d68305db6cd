"""The tables and plots of docs/study.md: Llama 70B and 405B over 2 to 64 stages, simulated.

    python benchmark/study.py [TABLE…]

Puts each table between its two marks in docs/study.md and draws docs/study_*.png, or makes only the
tables that are named; the words there are written by hand. Needs no torch and no device; the same
figures come out wherever it runs.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import study_claims
import study_loads
import study_plots
import study_tables
from study_cases import Runs

DOCS = Path(__file__).parents[1] / "docs"
TABLES = (
    study_tables.depth,
    study_tables.memory,
    study_tables.time,
    study_tables.links,
    study_tables.binds,
    study_loads.micro_batches,
    study_loads.one_or_many,
    study_loads.side_by_side,
    study_loads.arriving,
    study_claims.draining,
    study_claims.fixed,
    study_claims.accidental,
    study_claims.moving,
    study_claims.one_prompt,
    study_claims.long_among_short,
)


def put(text: str, name: str, lines: list[str]) -> str:
    """The text with a table in the place of the one that it had."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(text):
        raise SystemExit(f"docs/study.md has no place for the table {name!r}")
    return mark.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def main() -> None:
    path, named = DOCS / "study.md", sys.argv[1:]
    with ProcessPoolExecutor() as pool:
        runs = Runs(pool)
        for make in TABLES:
            if named and make.__name__ not in named:
                continue
            lines = make(runs)
            path.write_text(put(path.read_text(encoding="utf-8"), make.__name__, lines), "utf-8")
            print(make.__name__, file=sys.stderr)
        if not named:
            study_plots.all_plots(runs, DOCS)


if __name__ == "__main__":
    main()
