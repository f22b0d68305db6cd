"""The tables and plots of docs/study.md and study_schedules.md: Llama 70B and 405B, simulated.

    python benchmark/study.py [TABLE…]

Puts each table between its two marks there and draws docs/study_*.png, or makes only the tables
that are named; the words are written by hand. Needs no torch and no device; the same figures come
out wherever it runs.
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


def put(name: str, lines: list[str]) -> None:
    """Write a table in the place of the one that was there."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    for path in (DOCS / "study.md", DOCS / "study_schedules.md"):
        text = path.read_text(encoding="utf-8")
        if mark.search(text):
            new = mark.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)
            path.write_text(new, encoding="utf-8")
            return
    raise SystemExit(f"no document has a place for the table {name!r}")


def main() -> None:
    named = sys.argv[1:]
    with ProcessPoolExecutor() as pool:
        runs = Runs(pool)
        for make in TABLES:
            if named and make.__name__ not in named:
                continue
            put(make.__name__, make(runs))
            print(make.__name__, file=sys.stderr)
        if not named:
            study_plots.all_plots(runs, DOCS)


if __name__ == "__main__":
    main()
