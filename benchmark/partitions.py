"""Is the partition that was chosen the best one? Every cut of two stages is run.

    python benchmark/partitions.py > docs/results/partitions.md     7 minutes, nothing beside it

Two micro-batches, so that both stages work at once and the cut matters. All cuts are run in two
turns; then the best of them and the chosen one take turns again, since the machine drifts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ppinfer import PPInferEngine
from ppinfer.bench.calibration import run
from ppinfer.bench.conditions import conditions, in_words
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table, markdown, with_range
from ppinfer.config import Partition
from ppinfer.planner.traffic import static_batch

Layers = tuple[int, ...]

LOAD, WARM_UP = static_batch(32, 32, 32), static_batch(32, 16, 4)
TURNS, FINAL_TURNS, FINALISTS = 2, 4, 5


def measure(partition: Partition) -> tuple[Layers, float]:
    """The layers of each stage, and output tokens/s."""
    with PPInferEngine(
        "demo",
        pp_size=2,
        dtype="bf16",
        num_micro_batches=2,
        max_num_seqs=32,
        max_prefill_tokens=256,
        partition=partition,
    ) as engine:
        assert engine.pipeline is not None
        layers = tuple(each.last_layer - each.first_layer for each in engine.pipeline.layouts)
        run(engine, WARM_UP)
        return layers, run(engine, LOAD).throughput


def turns(count: int, cuts: Iterable[Layers]) -> dict[Layers, Spread]:
    rates: dict[Layers, list[float]] = {layers: [] for layers in cuts}
    for turn in range(count):
        for layers, found in rates.items():
            print(f"turn {turn + 1} of {count}: {words(layers)}", file=sys.stderr)
            found.append(measure(layers)[1])
    return {layers: Spread.of(found) for layers, found in rates.items()}


def words(layers: Layers) -> str:
    return "+".join(map(str, layers))


def table(title: str, rates: dict[Layers, Spread], chosen: Layers) -> Table:
    best = max(spread.median for spread in rates.values())
    made = Table(title, ["layers", "tokens/s (range)", "of the best"])
    for layers, spread in rates.items():
        name = words(layers) + (" (chosen)" if layers == chosen else "")
        made.rows.append([name, with_range(spread), f"{spread.median / best:.1%}"])
    return made


def main() -> None:
    before = conditions()
    chosen, _ = measure("auto")
    total = sum(chosen)
    every = turns(TURNS, [(first, total - first) for first in range(1, total)])
    top = sorted(every, key=lambda layers: -every[layers].median)[:FINALISTS]
    finals = turns(FINAL_TURNS, dict.fromkeys([*top, chosen]))
    tables = [
        table("The best and the chosen cut, in turns", finals, chosen),
        table("All cuts", every, chosen),
    ]
    print(
        f"# Partitions\n\n{in_words(before)}\n\nThe demo model in bf16, two stages, 32 requests of "
        f"32 prompt and 32 new tokens in two micro-batches, `python benchmark/partitions.py`.\n\n"
        f"{markdown(tables)}",
        end="",
    )


if __name__ == "__main__":
    main()
