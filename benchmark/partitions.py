"""Is the partition that was chosen the best one? Every cut of two stages is predicted and run.

    python benchmark/partitions.py > docs/results/partitions.md    19 minutes, nothing beside it

Two micro-batches, so that both stages work at once and the cut matters. All cuts are run in two
turns. A machine's speed may change more from minute to minute than from one cut to the next, so
the finalists are then open together and take turns of a few seconds: only figures of the same turn
are compared.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeAlias

from ppinfer import PPInferEngine
from ppinfer.bench.calibration import calibrate, run
from ppinfer.bench.conditions import conditions, in_words
from ppinfer.bench.stats import Spread, paired_ratios
from ppinfer.bench.tables import Table, markdown, number, with_range
from ppinfer.config import Partition
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import static_batch

Layers: TypeAlias = tuple[int, int]

LOAD, WARM_UP = static_batch(32, 32, 32), static_batch(32, 16, 4)
DTYPES = ("bf16", "fp32")
TURNS, FINAL_TURNS = 2, 12
BEST, BESIDE = 3, 2
"""The finals are between the best of all cuts, the chosen one, and those a few layers beside it."""


def open_engine(dtype: str, partition: Partition) -> PPInferEngine:
    """Warmed up, and always with the same KV blocks, whose memory is at hand."""
    engine = PPInferEngine(
        "demo",
        pp_size=2,
        dtype=dtype,
        num_micro_batches=2,
        max_num_seqs=32,
        max_prefill_tokens=256,
        prefix_caching=False,
        partition=partition,
    )
    run(engine, WARM_UP)
    return engine


def choose_and_predict(dtype: str) -> tuple[Layers, dict[Layers, float]]:
    """The chosen cut, and the output tokens/s that each cut is predicted to give."""
    with open_engine(dtype, "auto") as engine:
        assert engine.pipeline is not None
        chosen, *_ = (each.last_layer - each.first_layer for each in engine.pipeline.layouts)
        total = engine.pipeline.config.num_layers
        pipeline = calibrate(engine)
    predicted = {}
    for first in range(1, total):
        ranges = ((0, first), (first, total))
        stages = tuple(
            replace(stage, layers=layers)
            for stage, layers in zip(pipeline.stages, ranges, strict=True)
        )
        cut = replace(pipeline, stages=stages)
        predicted[first, total - first] = simulate(cut, LOAD).throughput
    return (chosen, total - chosen), predicted


def one_by_one(dtype: str, cuts: Iterable[Layers]) -> dict[Layers, list[float]]:
    """Output tokens/s of each cut in every turn, each with a pipeline of its own."""
    rates: dict[Layers, list[float]] = {cut: [] for cut in cuts}
    for turn in range(TURNS):
        for cut, found in rates.items():
            print(f"{dtype}, turn {turn + 1} of {TURNS}: {words(cut)}", file=sys.stderr)
            with open_engine(dtype, cut) as engine:
                found.append(run(engine, LOAD).throughput)
    return rates


def finalists(rates: dict[Layers, list[float]], chosen: Layers) -> list[Layers]:
    best = sorted(rates, key=lambda cut: -statistics.median(rates[cut]))[:BEST]
    return [cut for cut in rates if cut in best or abs(cut[0] - chosen[0]) <= BESIDE]


def together(dtype: str, cuts: Sequence[Layers]) -> dict[Layers, list[float]]:
    """The same while all pipelines stand, in an order that changes with every turn."""
    rates: dict[Layers, list[float]] = {cut: [] for cut in cuts}
    draw = random.Random(0)
    with ExitStack() as stack:
        engines = {cut: stack.enter_context(open_engine(dtype, cut)) for cut in cuts}
        for turn in range(FINAL_TURNS):
            print(f"{dtype}, final turn {turn + 1} of {FINAL_TURNS}", file=sys.stderr)
            for cut in draw.sample(cuts, len(cuts)):
                rates[cut].append(run(engines[cut], LOAD).throughput)
    return rates


def words(cut: Layers, chosen: Layers | None = None) -> str:
    return "+".join(map(str, cut)) + (" (chosen)" if cut == chosen else "")


def final_table(dtype: str, rates: dict[Layers, list[float]], chosen: Layers) -> Table:
    made = Table(
        f"{dtype}: the best and the chosen cut, in turns",
        ["layers", "tokens/s (range)", "of the chosen one's, turn by turn"],
    )
    ratios = {c: statistics.median(paired_ratios(r, rates[chosen])) for c, r in rates.items()}
    for cut, found in sorted(rates.items()):
        row = [words(cut, chosen), with_range(Spread.of(found)), f"{ratios[cut]:.1%}"]
        made.rows.append(row)
    best = max(ratios, key=ratios.__getitem__)
    behind = 1 - 1 / ratios[best]
    made.notes.append(f"The chosen cut is {behind:.1%} behind the best one, {words(best)}.")
    return made


def every_table(
    dtype: str, rates: dict[Layers, list[float]], predicted: dict[Layers, float], chosen: Layers
) -> Table:
    made = Table(f"{dtype}: all cuts", ["layers", "tokens/s (range)", "predicted", "error"])
    errors = []
    for cut, found in rates.items():
        spread, guess = Spread.of(found), predicted[cut]
        errors.append(abs(guess / spread.median - 1))
        row = [words(cut, chosen), with_range(spread), number(guess)]
        made.rows.append([*row, f"{guess / spread.median - 1:+.1%}"])
    made.notes.append(f"Predictions are off by {statistics.mean(errors):.1%} on average.")
    return made


def main() -> None:
    before = conditions()
    tables = []
    for dtype in DTYPES:
        chosen, predicted = choose_and_predict(dtype)
        every = one_by_one(dtype, predicted)
        finals = together(dtype, finalists(every, chosen))
        tables.append(final_table(dtype, finals, chosen))
        tables.append(every_table(dtype, every, predicted, chosen))
    print(
        f"# Partitions\n\n{in_words(before)}\n\nThe demo model, two stages, 32 requests of "
        f"32 prompt and 32 new tokens in two micro-batches, `python benchmark/partitions.py`.\n\n"
        f"{markdown(tables)}",
        end="",
    )


if __name__ == "__main__":
    main()
