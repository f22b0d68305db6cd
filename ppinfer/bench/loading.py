"""What loading costs against the size of a model: seconds, and memory at its peak. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ppinfer.bench.named import llama_config, opened
from ppinfer.bench.plots import Line, Panel
from ppinfer.bench.remote import Worker, WorkerFailed
from ppinfer.bench.stats import Spread
from ppinfer.bench.tables import Table
from ppinfer.bench.throughput import Notice

LAYERS = (2, 4, 8, 16, 24)
"""Of the models that are loaded; each layer has 44 million parameters."""
_TIMEOUT = 900.0


@dataclass
class LoadCell:
    """Loading one model over some stages.

    Attributes:
        weight_bytes: of all stages.
        seconds: from nothing to a pipeline that stands, one entry a turn.
        load_seconds: of the slowest stage's weights alone.
        peak_bytes: highest resident memory of the stage that needs most.
        share_bytes: that stage's own weights.
    """

    stages: int
    parameters: int
    weight_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    share_bytes: int = 0
    why: str = ""


def measure_loading(
    layers: Sequence[int],
    stage_counts: Sequence[int],
    dtype: str,
    repeats: int,
    memory_limit: int,
    notice: Notice,
) -> Iterator[list[LoadCell]]:
    """Models of growing depth, made-up weights; yields all cells each time one is done."""
    cells: list[LoadCell] = []
    for done, count in enumerate(layers):
        config = llama_config(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=count,
            num_attention_heads=32, num_key_value_heads=4,
        )  # fmt: skip
        with opened(config, f"{count} layers") as subject:
            for stages in stage_counts:
                notice(f"{count} layers over {stages} stages", done, len(layers))
                cell = LoadCell(stages, subject.config.total_parameters)
                settings = {
                    "pp_size": stages, "dtype": dtype, "load_format": "dummy",
                    "kv_cache_memory": "64MB",
                }  # fmt: skip
                for _ in range(repeats):
                    _load_once(cell, subject.path, settings, memory_limit)
                cells.append(cell)
                yield cells


def _load_once(cell: LoadCell, path: str, settings: dict[str, object], memory_limit: int) -> None:
    if cell.why:
        return
    try:
        with Worker("pipeline", memory_limit=memory_limit) as worker:
            answer = worker.ask("load", _TIMEOUT, model=path, settings=settings)
    except WorkerFailed as failure:
        cell.why = "OOM" if failure.status == "oom" else str(failure)
        return
    loaded = answer["loaded"]
    most = max(loaded, key=lambda stage: stage["peak_rss_bytes"])
    cell.weight_bytes = sum(stage["weight_bytes"] for stage in loaded)
    cell.peak_bytes, cell.share_bytes = most["peak_rss_bytes"], most["weight_bytes"]
    cell.seconds.append(answer["seconds"])
    cell.load_seconds.append(max(stage["load_seconds"] for stage in loaded))


def table(cells: Sequence[LoadCell], dtype: str) -> Table:
    made = Table(
        f"Loading against model size, {dtype}, made-up weights",
        ["stages", "parameters M", "weights MB", "up after s (range)", "weights alone s",
         "largest share MB", "its peak MB", "over MB"],
    )  # fmt: skip
    for cell in cells:
        labels = [str(cell.stages), f"{cell.parameters / 1e6:,.0f}"]
        if cell.why:
            made.rows.append([*labels, cell.why, *[""] * 5])
            continue
        up, load = Spread.of(cell.seconds), Spread.of(cell.load_seconds)
        made.rows.append(
            [
                *labels,
                f"{cell.weight_bytes / 1e6:,.0f}",
                f"{up.median:.1f} ({up.low:.1f}–{up.high:.1f})",
                f"{load.median:.1f}",
                f"{cell.share_bytes / 1e6:,.0f}",
                f"{cell.peak_bytes / 1e6:,.0f}",
                f"{(cell.peak_bytes - cell.share_bytes) / 1e6:,.0f}",
            ]
        )
    return made


def panels(cells: Sequence[LoadCell]) -> list[Panel]:
    """Seconds and peak memory against the size of the weights; a line a pipeline size."""
    times, peaks = [], []
    for stages in dict.fromkeys(cell.stages for cell in cells):
        own = [cell for cell in cells if cell.stages == stages and not cell.why]
        xs = [cell.weight_bytes / 1e9 for cell in own]
        name = "1 process" if stages == 1 else f"{stages} stages"
        spreads = [Spread.of(cell.seconds) for cell in own]
        times.append(
            Line(name, xs, [s.median for s in spreads], [s.low for s in spreads],
                 [s.high for s in spreads])
        )  # fmt: skip
        peaks.append(Line(name, xs, [cell.peak_bytes / 1e9 for cell in own]))
    return [
        Panel("Start-up", "weights, GB", "seconds until the pipeline stands", times),
        Panel("Memory", "weights, GB", "peak of the largest stage, GB", peaks),
    ]
