"""Pictures of results, drawn with matplotlib, which is needed for nothing else. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppinfer.bench.cases import HF_NAME
from ppinfer.bench.files import replace_file
from ppinfer.bench.records import Comparison
from ppinfer.errors import ConfigError

_COLORS = ("#b8b8b8", "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d")
_INK = "#333333"
_LINES = "#dddddd"
_DPI = 150
_HEADROOM = 1.04
_CEILING = "kernels' ceiling"


@dataclass(frozen=True)
class Line:
    """One named line: its points, and the range of each where there is one; ``style`` is
    matplotlib's."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    color: str | None = None
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines.

    ``ticks`` are names of the places 0, 1, 2, … along x, where these are no figures; ``limit`` is
    drawn if it is not far above the lines.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    whole: bool = False  # only whole numbers along x
    ticks: Sequence[str] = ()
    limit: float | None = None


def require_matplotlib() -> Any:
    """``matplotlib`` with its figures made without a display; to be called before long work.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            "A plot needs matplotlib, which is not installed: pip install 'ppinfer[plot]'."
        ) from error
    matplotlib.use("agg")
    return matplotlib


def plot_throughput(comparisons: Sequence[Comparison], path: Path) -> None:
    """Bars of output tokens/s by shape, whiskers for the range, ratios above; axes a dtype."""
    count = len(comparisons)
    figure, axes = _axes(count, width=max(6.0, 1.7 * _num_shapes(comparisons)), height=4.6)
    for axis, comparison in zip(axes, comparisons, strict=True):
        _bars(axis, comparison)
    handles, names = axes[0].get_legend_handles_labels()
    legend = dict(sorted(zip(names, handles, strict=True), key=lambda item: item[0] == _CEILING))
    figure.legend(
        legend.values(), legend.keys(), loc="upper center", ncols=len(legend), frameon=False,
        fontsize=9,
    )  # fmt: skip
    _save(figure, path, top=0.95)


def plot_lines(panels: Sequence[Panel], path: Path, columns: int | None = None) -> None:
    """Panels side by side, or so many in a row; every axis from zero."""
    figure, axes = _axes(len(panels), width=5.6, height=4.0, columns=columns)
    for axis, panel in zip(axes, panels, strict=True):
        for index, line in enumerate(panel.lines):
            shift = 0 if panel.lines[0].name == HF_NAME else 1
            color = line.color or _COLORS[(index + shift) % len(_COLORS)]
            axis.plot(
                line.xs, line.ys, line.style, marker="o", markersize=4, color=color, label=line.name
            )
            if line.lows:
                axis.fill_between(line.xs, line.lows, line.highs, color=color, alpha=0.2, lw=0)
        axis.set_title(panel.title, fontsize=10, color=_INK)
        axis.set_xlabel(panel.x_label, fontsize=9)
        axis.set_ylabel(panel.y_label, fontsize=9)
        axis.set_ylim(bottom=0, top=_HEADROOM * axis.get_ylim()[1])
        if panel.limit is not None and panel.limit < axis.get_ylim()[1]:
            axis.axhline(panel.limit, color=_INK, linewidth=1.0, linestyle="--", label="objective")
        if panel.ticks:
            axis.set_xticks(range(len(panel.ticks)), panel.ticks)
            axis.set_xlim(-0.3, len(panel.ticks) - 0.7)
        else:
            axis.set_xlim(left=0)
        if panel.whole:
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color=_LINES, linewidth=0.6)
        if len(panel.lines) > 1:
            axis.legend(frameon=False, fontsize=8, handlelength=2.8)
    _save(figure, path)


def _bars(axis: Any, comparison: Comparison) -> None:
    cells = comparison.cells
    shapes = list(dict.fromkeys(cell.shape for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))
    width = 0.8 / len(rows)
    highest = max((max(cell.rates) for cell in cells if cell.is_ok), default=1.0)
    for cell in cells:
        row, place = rows.index(cell.row), shapes.index(cell.shape)
        x = place + (row - (len(rows) - 1) / 2) * width
        color = _COLORS[(row if any(c.is_hf for c in cells) else row + 1) % len(_COLORS)]
        label = cell.row if place == 0 else None
        if not cell.is_ok:
            axis.bar(x, 0, width * 0.92, color=color, label=label)
            axis.text(x, highest * 0.01, cell.status.upper() if cell.status == "oom" else
                      cell.status, rotation=90, ha="center", va="bottom", fontsize=7,
                      color=_INK)  # fmt: skip
            continue
        rate = cell.tokens_per_second
        error = [[rate.median - rate.low], [rate.high - rate.median]]
        axis.bar(x, rate.median, width * 0.92, color=color, label=label)
        axis.errorbar(x, rate.median, yerr=error, color=_INK, capsize=2, linewidth=0.8)
        text = f"{rate.median:.0f}" if cell.ratio is None else f"{cell.ratio.median:.1f}x"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axis.text(x, rate.high + highest * 0.014, text, ha="center", va="bottom", fontsize=7,
                  color=_INK, bbox=paper, zorder=3)  # fmt: skip
    for place, shape in enumerate(shapes):
        ceiling = next((c.ceiling for c in cells if c.shape == shape and c.ceiling), None)
        if ceiling is not None:
            label = _CEILING if place == 0 else None
            span = [place - 0.42, place + 0.42]
            axis.plot(span, [ceiling] * 2, color=_INK, linewidth=1.0, linestyle="--", label=label)
    names = [" x ".join(shape.split("x")) for shape in shapes]
    axis.set_xticks(range(len(shapes)), names, fontsize=8)
    axis.set_xlabel("batch x prompt x new tokens", fontsize=9)
    axis.set_ylabel("output tokens/s, prefill included", fontsize=9)
    axis.set_title(f"{comparison.model}, {comparison.dtype}", fontsize=10, color=_INK)
    axis.grid(axis="y", color=_LINES, linewidth=0.6)


def _axes(
    count: int, width: float, height: float, columns: int | None = None
) -> tuple[Any, list[Any]]:
    require_matplotlib()
    pyplot = importlib.import_module("matplotlib.pyplot")
    columns = min(columns or count, count)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False
    )
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes[:count]


def _save(figure: Any, path: Path, top: float = 1.0) -> None:
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure.tight_layout(rect=(0, 0, 1, top))
    try:
        replace_file(path, lambda part: figure.savefig(part, dpi=_DPI, format="png"))
    finally:
        pyplot.close(figure)


def _num_shapes(comparisons: Sequence[Comparison]) -> int:
    return max(len({cell.shape for cell in comparison.cells}) for comparison in comparisons)
