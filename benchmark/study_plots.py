"""The study's plots, of the same runs as its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study_cases import DEVICES, MODELS, NAMES, STAGES, Case, Run, Runs
from study_loads import side_cases
from study_tables import (
    LINK_NAMES,
    LINK_STAGES,
    LINKS,
    PARTS,
    SEQUENCE,
    depth_cases,
    link_runs,
    time_shares,
)

from ppinfer.bench.plots import require_matplotlib

COLORS = {"a10": "#54a24b", "l40s": "#f58518", "a100-80": "#b279a2", "h100": "#4c78a8"}
PART_COLORS = ("#4c78a8", "#9ecae9", "#f2cf5b", "#e45756", "#d8b5a5", "#b279a2", "#bab0ac")
INK, LINES = "#333333", "#dddddd"


def all_plots(runs: Runs, folder: Path) -> None:
    depth(runs, folder / "study_depth.png")
    memory(runs, folder / "study_memory.png")
    time(runs, folder / "study_time.png")
    links(runs, folder / "study_links.png")
    side_by_side(runs, folder / "study_side_by_side.png")


def _axes(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(10, height), squeeze=False)
    for axis in axes.flat:
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        axis.grid(axis="y", color=LINES, linewidth=0.6)
    return figure, axes


def _save(figure: Any, path: Path, top: float = 1.0) -> None:
    from matplotlib import pyplot

    figure.tight_layout(rect=(0, 0, 1, top), w_pad=2.5)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _words(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=11, color=INK)
    axis.set_xlabel(x, fontsize=10)
    axis.set_ylabel(y, fontsize=10)
    axis.yaxis.set_major_formatter("{x:,.0f}")


def _by_stages(axis: Any, stages: Sequence[int]) -> None:
    axis.set_xticks(range(len(stages)), [str(count) for count in stages])
    axis.set_xlim(-0.25, len(stages) - 0.75)


def _curve(axis: Any, values: Sequence[float | None], **looks: Any) -> None:
    """A line over the places 0, 1, … at which there is a value."""
    points = [(place, value) for place, value in enumerate(values) if value is not None]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=5, linewidth=1.8, **looks)


def _legend(figure: Any, axis: Any, columns: int) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=columns, frameon=False, fontsize=10)


def _depth_runs(runs: Runs) -> dict[tuple[str, str], list[Run]]:
    found = iter(runs.all(depth_cases()))
    return {(m, d): [next(found) for _ in STAGES] for m in MODELS for d in DEVICES}


def depth(runs: Runs, path: Path) -> None:
    figure, axes = _axes(2, 2, 7.6)
    for row, model in enumerate(MODELS):
        for device in DEVICES:
            group = _depth_runs(runs)[model, device]
            looks = {"color": COLORS[device], "label": NAMES[device]}
            _curve(
                axes[row][0],
                [r.rate / r.case.stages if r.outcome else None for r in group],
                **looks,
            )
            token = [r.outcome.between_tokens.p50 * 1e3 if r.outcome else None for r in group]
            _curve(axes[row][1], token, **looks)
        for axis, y in zip(
            axes[row], ("output tokens/s a device", "ms between tokens"), strict=True
        ):
            _words(axis, f"{MODELS[model].name}, 16 sequences a stage", "stages", y)
            _by_stages(axis, STAGES)
            axis.set_ylim(bottom=0)
    _legend(figure, axes[0][0], len(DEVICES))
    _save(figure, path, top=0.95)


def memory(runs: Runs, path: Path) -> None:
    figure, axes = _axes(1, 2, 4.2)
    for axis, model in zip(axes[0], MODELS, strict=True):
        for device in ("a10", "l40s", "h100", "a100-80"):  # the last two lie on each other
            group = _depth_runs(runs)[model, device]
            fit = [r.kv_tokens / SEQUENCE / r.case.stages if r.outcome else None for r in group]
            dashes = {"linestyle": "--"} if device == "a100-80" else {}
            _curve(axis, fit, color=COLORS[device], label=NAMES[device], **dashes)
        _words(axis, MODELS[model].name, "stages", "sequences of 2,048 tokens a device")
        _by_stages(axis, STAGES)
        axis.set_ylim(bottom=0)
    _legend(figure, axes[0][0], len(DEVICES))
    _save(figure, path, top=0.92)


def time(runs: Runs, path: Path) -> None:
    groups = time_shares(runs)
    figure, axes = _axes(1, len(groups), 4.6)
    for axis, (name, group) in zip(axes[0], groups.items(), strict=True):
        base = [0.0] * len(group)
        for index, (part, color) in enumerate(zip(PARTS, PART_COLORS, strict=True)):
            heights = [100 * shares.parts[index] for shares in group]
            places = range(len(group))
            axis.bar(places, heights, 0.78, bottom=base, color=color, label=part)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axis.set_xticks(range(len(group)), [shares.name for shares in group])
        axis.set_ylim(0, 100)
        _words(axis, name, "stages", "% of an average stage's time")
    _legend(figure, axes[0][0], len(PARTS))
    _save(figure, path, top=0.92)


def links(runs: Runs, path: Path) -> None:
    figure, axes = _axes(1, 2, 4.4)
    colors = ("#4c78a8", "#72b7b2", "#54a24b", "#f2cf5b", "#f58518", "#e45756")
    for axis, model in zip(axes[0], MODELS, strict=True):
        found = link_runs(runs, model)
        for link, color in zip(LINKS, colors, strict=True):
            pairs = zip(found[link], found["ideal"], strict=True)
            part = [100 * run.rate / best.rate if run.outcome else None for run, best in pairs]
            _curve(axis, part, color=color, label=LINK_NAMES[link])
        _words(axis, f"{MODELS[model].name} on H100", "stages", "% of tokens/s without links' time")
        _by_stages(axis, LINK_STAGES)
        axis.set_ylim(50, 102)
    _legend(figure, axes[0][0], len(LINKS))
    _save(figure, path, top=0.92)


def side_by_side(runs: Runs, path: Path) -> None:
    figure, axes = _axes(1, 3, 4.2)
    depths = (64, 32, 16, 8, 4)
    for axis, (model, device) in zip(
        axes[0], (("70B", "h100"), ("70B", "a10"), ("405B", "h100")), strict=True
    ):
        cases: dict[int, Case] = side_cases(model, device)
        found = runs.all(cases.values())
        rates = [
            count * run.rate if run.outcome else 0.0
            for count, run in zip(cases, found, strict=True)
        ]
        axis.bar(range(len(depths)), rates, 0.7, color=COLORS[device])
        for place, rate in enumerate(rates):
            text = f"{rate:,.0f}" if rate else "does\nnot fit"
            axis.annotate(
                text, (place, rate), (0, 3), textcoords="offset points", ha="center", fontsize=9,
                color=INK,
            )  # fmt: skip
        axis.set_xticks(range(len(depths)), [f"{64 // d} x {d}" for d in depths], fontsize=8)
        axis.set_ylim(0, 1.12 * max(rates))
        _words(axis, f"{model} on 64 {NAMES[device]}", "pipelines x stages", "output tokens/s")
    _save(figure, path)
