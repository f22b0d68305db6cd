"""Predicted beside measured: is the simulator right about this machine?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table, number, with_range
from ppinfer.planner.outcome import Outcome
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import Arrival, arrivals, static_batch
from ppinfer.trace.analysis import analyse

if TYPE_CHECKING:
    from ppinfer.bench.calibration import RealRun
    from ppinfer.bench.throughput import Notice
    from ppinfer.engine.engine import PPInferEngine

Loads: TypeAlias = Mapping[str, Sequence[Arrival]]

LOADS: Loads = {
    "32x128x64": static_batch(32, 128, 64),
    "8x128x64": static_batch(8, 128, 64),
    "1x128x64": static_batch(1, 128, 64),
    "16x512x32": static_batch(16, 512, 32),
    "32x32x96, decode-heavy": static_batch(32, 32, 96),
    "4x1500x8, prefill-heavy": static_batch(4, 1500, 8),
    "24 mixed, 16-700 x 8-96": arrivals(24, (16, 700), (8, 96), seed=3),
    "2/s, 16-700 x 8-96": arrivals(16, (16, 700), (8, 96), rate=2.0, seed=1),
    "6/s, 16-700 x 8-96": arrivals(24, (16, 700), (8, 96), rate=6.0, seed=2),
    "6/s, 16-64 x 64-96, decode-heavy": arrivals(24, (16, 64), (64, 96), rate=6.0, seed=4),
    "3/s, 600-900 x 4-12, prefill-heavy": arrivals(12, (600, 900), (4, 12), rate=3.0, seed=5),
}
"""Static and arriving (so many a second), prompt tokens x new tokens."""

_LARGEST = "16x512x32"
"""It has the most tokens in memory at once."""

MOST_SEQUENCES = 32

_SECONDS, _MOST_TIMES = 5.0, 5
"""For how long a load is measured in a turn, about, and how often at most."""


@dataclass(frozen=True)
class Prediction:
    """One load on one pipeline.

    Attributes:
        measured: output tokens/s of each run.
        busy, predicted_busy: shares of the run that each stage was at work; of the median run.
    """

    stages: int
    dtype: str
    load: str
    predicted: float
    measured: list[float]
    predicted_busy: list[float]
    busy: list[float]
    choices: list[str] = field(default_factory=list)

    @property
    def error(self) -> float:
        """Of the predicted throughput, as a part of the measured median."""
        return self.predicted / Spread.of(self.measured).median - 1

    @property
    def busy_error(self) -> float:
        """The largest of any stage."""
        pairs = zip(self.busy, self.predicted_busy, strict=True)
        return max(abs(measured - predicted) for measured, predicted in pairs)


def predict_all(
    model: str, pp_sizes: Sequence[int], dtypes: Sequence[str], repeats: int, notice: Notice
) -> Iterator[list[Prediction]]:
    """All loads on all pipelines; yields everything so far after each pipeline."""
    from ppinfer.bench.calibration import calibrate, run
    from ppinfer.engine.engine import PPInferEngine

    found: list[Prediction] = []
    total = len(pp_sizes) * len(dtypes)
    for done, (dtype, stages) in enumerate((d, pp) for d in dtypes for pp in pp_sizes):
        notice(f"{stages} stages, {dtype}", done, total)
        with PPInferEngine(
            model,
            pp_size=stages,
            dtype=dtype,
            max_num_seqs=MOST_SEQUENCES,
            prefix_caching=False,  # prompts have nothing in common, and their blocks are reused
        ) as engine:
            # Not timed: a virtual machine may be slow to give memory for the first time.
            run(engine, LOADS[_LARGEST])
            pipeline = calibrate(engine)
            predicted = {name: simulate(pipeline, load) for name, load in LOADS.items()}
            found += compare(engine, LOADS, predicted, repeats, _SECONDS)
        yield found


def compare(
    engine: PPInferEngine,
    loads: Loads,
    predicted: Mapping[str, Outcome],
    repeats: int,
    seconds: float = 0.0,
) -> list[Prediction]:
    """Run loads so often, in turns, beside what was predicted of them.

    Short ones are run several times a turn, to take so many seconds, since a machine's speed wavers
    from one to the next.
    """
    from ppinfer.bench.calibration import run

    all_runs: dict[str, list[RealRun]] = {name: [] for name in loads}
    for _ in range(repeats):
        for name, load in loads.items():
            times = min(max(1, round(seconds / predicted[name].seconds)), _MOST_TIMES)
            all_runs[name] += [run(engine, load) for _ in range(times)]
    found = []
    for name in loads:
        runs = sorted(all_runs[name], key=lambda run: run.throughput)
        middle = analyse(runs[len(runs) // 2].trace).total
        outcome = predicted[name]
        found.append(
            Prediction(
                stages=engine.config.pp_size,
                dtype=engine.dtype,
                load=name,
                predicted=outcome.throughput,
                measured=[run.throughput for run in all_runs[name]],
                predicted_busy=[stage.busy_share for stage in outcome.stages],
                busy=[stage.busy_share for stage in middle.stages],
                choices=engine.choices,
            )
        )
    return found


def tables(found: Sequence[Prediction]) -> list[Table]:
    """One a dtype and pipeline size."""
    made = []
    for dtype, stages in dict.fromkeys((each.dtype, each.stages) for each in found):
        own = [each for each in found if (each.dtype, each.stages) == (dtype, stages)]
        words = "1 process" if stages == 1 else f"{stages} stages"
        table = Table(
            f"{words}, {dtype}: output tokens/s",
            ["load", "measured (range)", "predicted", "error", "busy, measured", "predicted",
             "off by points"],
        )  # fmt: skip
        for each in own:
            table.rows.append(
                [
                    each.load,
                    with_range(Spread.of(each.measured)),
                    number(each.predicted),
                    f"{each.error:+.1%}",
                    _shares(each.busy),
                    _shares(each.predicted_busy),
                    f"{100 * each.busy_error:.1f}",
                ]
            )
        errors = [abs(each.error) for each in own]
        table.notes.append(
            f"Mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}; busy shares "
            f"off by at most {100 * max(each.busy_error for each in own):.1f} points."
        )
        table.notes += own[0].choices
        made.append(table)
    return made


def _shares(shares: Sequence[float]) -> str:
    return " ".join(f"{share:.0%}" for share in shares)
