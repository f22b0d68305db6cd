"""``ppinfer plan MODEL --devices here``: predict what this machine does, then run it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppinfer.cli.terminal import Bar
from ppinfer.errors import ConfigError

if TYPE_CHECKING:
    from ppinfer.planner.traffic import Arrival

_REPEATS = 3


def plan_here(
    model: str,
    devices: str,
    load: Sequence[Arrival],
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure, calibrate, predict and run on pipelines of up to so many stages.

    Raises:
        ConfigError: ``devices`` is not ``here`` or ``here:COUNT``.
    """
    from ppinfer.bench import predictions
    from ppinfer.bench.calibration import calibrate
    from ppinfer.engine.engine import PPInferEngine
    from ppinfer.planner.plan import MOST_SEQUENCES
    from ppinfer.planner.simulate import simulate

    if not re.fullmatch(r"here(:[1-9][0-9]?)?", devices):
        raise ConfigError(f"this machine is written here, or here:2 for 2 stages, not {devices!r}.")
    most = int(devices.partition(":")[2] or 1)
    sequences = {"max_num_seqs": min(len(load), MOST_SEQUENCES)} | settings
    found: list[predictions.Prediction] = []
    seconds: list[float] = []
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < most] + [most]
    with Bar() as bar:
        for done, stages in enumerate(sizes):
            bar.show(f"{stages} stages: calibrate", done, len(sizes))
            with PPInferEngine(model, pp_size=stages, **sequences) as engine:
                started = time.perf_counter()
                pipeline = calibrate(engine)
                seconds.append(time.perf_counter() - started)
                bar.show(f"{stages} stages: run", done, len(sizes))
                predicted = {"this load": simulate(pipeline, load)}
                found += predictions.compare(engine, {"this load": load}, predicted, _REPEATS)
    if as_json:
        import msgspec

        print(msgspec.json.encode(found).decode())
        return
    from rich.console import Console

    from ppinfer.bench.tables import show

    console = Console(highlight=False)
    best = max(found, key=lambda each: each.predicted)
    words = "one process" if best.stages == 1 else f"{best.stages} stages"
    console.print(f"Best here: {words}, {best.predicted:,.0f} tokens/s predicted.", style="bold")
    show(predictions.tables(found), console)
    console.print(f"Calibrated in {max(seconds):.1f} s at most.")
