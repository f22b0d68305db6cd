"""Is the partition that was chosen the best one? Every cut of two stages, predicted and run.

    python benchmark/partitions.py > docs/results/partitions.md      4 minutes; nothing else should run

Two micro-batches, so that both stages work at once and the cut matters.
"""

from __future__ import annotations

import sys

from ppinfer import PPInferEngine
from ppinfer.bench.calibration import calibrate, run
from ppinfer.bench.conditions import conditions, in_words
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table, markdown, number, with_range
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import static_batch

LOAD = static_batch(32, 32, 40)
SETTINGS = {"pp_size": 2, "dtype": "bf16", "num_micro_batches": 2, "max_num_seqs": 32,
            "max_prefill_tokens": 256}  # fmt: skip
REPEATS = 2


def measure(partition: object) -> tuple[tuple[int, ...], list[float], float]:
    """Layers, tokens/s of each run, and what was predicted."""
    with PPInferEngine("demo", partition=partition, **SETTINGS) as engine:
        assert engine.pipeline is not None
        layers = tuple(last - first for first, last in
                       ((each.first_layer, each.last_layer) for each in engine.pipeline.layouts))  # fmt: skip
        run(engine, static_batch(32, 16, 4))
        rates = [run(engine, LOAD).throughput for _ in range(REPEATS)]
        predicted = 0.0
        if engine.pipeline.measured is not None:
            predicted = simulate(calibrate(engine, 1), LOAD).throughput
    return layers, rates, predicted


def main() -> None:
    before = conditions()
    chosen, _, _ = measure("auto")
    total = sum(chosen)
    rates: dict[tuple[int, ...], list[float]] = {}
    for turn in range(2):
        for first in range(1, total):
            print(f"turn {turn}: {first}+{total - first}", file=sys.stderr)
            layers, found, _ = measure((first, total - first))
            rates.setdefault(layers, []).extend(found)
    best = max(rates, key=lambda layers: Spread.of(rates[layers]).median)
    table = Table("demo, bf16, 32x32x40 in two micro-batches: output tokens/s by cut",
                  ["layers", "measured (range)", "of the best"])  # fmt: skip
    top = Spread.of(rates[best]).median
    for layers, found in rates.items():
        spread = Spread.of(found)
        name = "+".join(map(str, layers)) + (" (chosen)" if layers == chosen else "")
        table.rows.append([name, with_range(spread), f"{spread.median / top:.0%}"])
    table.notes.append(
        f"Chosen: {'+'.join(map(str, chosen))} with {number(Spread.of(rates[chosen]).median)}, "
        f"{Spread.of(rates[chosen]).median / top:.1%} of the best of all {total - 1}."
    )
    print(f"# Partitions\n\n{in_words(before)}\n\n{markdown([table])}", end="")


if __name__ == "__main__":
    main()
