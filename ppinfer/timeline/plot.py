"""A picture of a trace: the run as a whole, a close look at its steady decode, and the sums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppinfer.errors import ConfigError, TraceError
from ppinfer.timeline.buckets import Kind, cut, kind_of
from ppinfer.timeline.lanes import closer
from ppinfer.timeline.palette import ACTIVITIES, DECODE, PREFILL, name_of, slot_colour
from ppinfer.timeline.tables import sections
from ppinfer.trace.analysis import Analysis
from ppinfer.trace.intervals import Interval
from ppinfer.trace.model import DRIVER_WORK, WAITS, WORK, Lane, Trace, slot_letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEWEST, _MOST = 40, 500
"""Columns of the overview: about one a round of the micro-batches, so that it is smooth."""

_HATCHES = {"wait_plan": "////", "wait_input": "....", "send": "\\\\\\\\"}
_ORDER = (*WORK[1:], *DRIVER_WORK, *reversed(WAITS))
"""What is stacked above computing, from below."""


def save_png(trace: Trace, analysis: Analysis, interval: Interval, path: Path) -> None:
    """Draw an interval of the trace.

    Raises:
        ConfigError: matplotlib is not installed.
        TraceError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "A picture needs matplotlib; install it with: pip install ppinfer[plot]"
        ) from error
    lanes = len(trace.lanes)
    figure = Figure(figsize=(13, 4.2 + 1.25 * lanes), layout="constrained", dpi=130)
    bars = len(trace.stages) * len(sections(analysis))
    grid = figure.add_gridspec(3, 1, height_ratios=(lanes, lanes, 0.55 * bars + 0.6))
    total = analysis.total
    figure.suptitle(
        f"{trace.title}: {total.seconds:.2f} s, {total.steps} steps",
        fontsize=13, fontweight="bold",
    )  # fmt: skip
    _overview(figure.add_subplot(grid[0]), trace, interval)
    steady = analysis.steady
    middle = interval if steady is None else (int(steady.start * 1e9), int(steady.end * 1e9))
    _close_look(figure.add_subplot(grid[1]), trace, closer(trace, middle))
    _sums(figure.add_subplot(grid[2]), analysis)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise TraceError(f"The picture cannot be written to {path}: {error.strerror}.") from error


def _overview(axes: Axes, trace: Trace, interval: Interval) -> None:
    """Shares of time, stacked in each lane."""
    start, end = interval
    count = min(max((end - start) // _round(trace, interval), _FEWEST), _MOST)
    edges = [(start + (end - start) * n / count) / 1e9 for n in range(count + 1)]
    layers: list[tuple[str, str]] = [("decode", DECODE), ("prefill", PREFILL)]
    layers += [(kind, ACTIVITIES[kind]) for kind in _ORDER]
    for row, lane in enumerate(_shown(trace)):
        base = [row + 0.4] * count
        columns = cut(lane, trace, start, end, count)
        for name, colour in layers:
            top = [y - 0.8 * _share(column, name) for y, column in zip(base, columns, strict=True)]
            axes.fill_between(
                edges, [*base, base[-1]], [*top, top[-1]],
                step="post", color=colour, linewidth=0, label=_label(name, row),
            )  # fmt: skip
            base = top
    _dress(axes, trace, "The run: shares of time", "s")
    used = {kind[0] for lane in trace.stages for c in [_kinds(lane, trace)] for kind in c}
    handles, labels = axes.get_legend_handles_labels()
    wanted = {"decode", "prefill", *map(name_of, used - {"compute"})}
    shown = [(h, text) for h, text in zip(handles, labels, strict=True) if text in wanted]
    axes.legend(*zip(*shown, strict=True), **_LEGEND)
    axes.set_xlim(edges[0], edges[-1])


_LEGEND: dict[str, Any] = {
    "loc": "center left", "bbox_to_anchor": (1.005, 0.5), "fontsize": 8, "frameon": False,
}  # fmt: skip


def _close_look(axes: Axes, trace: Trace, interval: Interval) -> None:
    """A box a span, with the slot's letter, and an arrow for every hidden state sent."""
    from matplotlib.patches import Patch

    start, end = interval
    sends: list[dict[int, float]] = []
    begins: list[dict[int, float]] = []
    legend: dict[str, Patch] = {}
    for row, lane in enumerate(_shown(trace)):
        sends.append({})
        begins.append({})
        for span in lane.spans:
            if span.end <= start or span.start >= end or span.activity == "wait":
                continue
            activity, slot, _ = kind_of(span, trace)
            left, width = (span.start - start) / 1e6, (span.end - span.start) / 1e6
            style = _box_style(activity, slot)
            axes.broken_barh([(left, width)], (row - 0.36, 0.72), **style)
            name = f"micro-batch {slot_letter(slot)}" if activity == "compute" else activity
            legend.setdefault(name_of(name), Patch(**style))
            if activity == "compute":
                begins[row].setdefault(span.step, left)
                if width > (end - start) / 1e6 / 60:
                    axes.text(
                        left + width / 2, row, slot_letter(slot), clip_on=True,
                        color="white", ha="center", va="center", fontsize=9, fontweight="bold",
                    )  # fmt: skip
            elif activity == "send":
                sends[row][span.step] = left
    for row in range(len(trace.stages) - 1):
        for step, at in sends[row].items():
            if step in begins[row + 1]:
                axes.annotate(
                    "", (begins[row + 1][step], row + 0.64), (at, row + 0.36),
                    arrowprops={"arrowstyle": "->", "color": "#333333", "linewidth": 0.8},
                    annotation_clip=True,
                )  # fmt: skip
    title = f"A closer look, from {start / 1e9:.3f} s on; arrows: hidden states"
    _dress(axes, trace, title, "ms")
    axes.set_xlim(0, (end - start) / 1e6)
    names = sorted(legend, key=lambda name: (not name.startswith("micro-batch"), name))
    axes.legend([legend[name] for name in names], names, **_LEGEND)


def _sums(axes: Axes, analysis: Analysis) -> None:
    """Stacked bars: each stage's time in the whole run and in its steady decode."""
    labels = []
    rows = [
        (f"{title}: stage {stage.stage}", stage)
        for title, section in sections(analysis)
        for stage in section.stages
    ]
    for row, (label, stage) in enumerate(rows):
        left = 0.0
        labels.append(label)
        for kind in (*WORK, *WAITS):
            share = stage.parts[kind].share * 100
            style = _box_style(kind, 0) | ({"facecolor": DECODE} if kind == "compute" else {})
            bar = axes.barh(row, share, left=left, height=0.7, **style)
            if share >= 4:
                axes.bar_label(
                    bar, [f"{share:.0f}%"], label_type="center", fontsize=8,
                    color="white" if kind in ("compute", "sample") else "black",
                )  # fmt: skip
            if row == 0:
                bar.set_label(name_of(kind))
            left += share
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of wall time", fontsize=9)
    axes.set_title("Where the time went", fontsize=10, loc="left")
    axes.legend(**_LEGEND)
    axes.spines[["top", "right"]].set_visible(False)


def _box_style(activity: str, slot: int) -> dict[str, Any]:
    if activity == "compute":
        return {"facecolor": slot_colour(slot), "edgecolor": "white", "linewidth": 0.5}
    colour = ACTIVITIES[activity]
    if activity in _HATCHES:
        return {
            "facecolor": "#F4F4F4", "edgecolor": colour, "hatch": _HATCHES[activity],
            "linewidth": 0.0,
        }  # fmt: skip
    return {"facecolor": colour, "linewidth": 0.0}


def _dress(axes: Axes, trace: Trace, title: str, unit: str) -> None:
    names = [lane.name.replace(": ", "\n") for lane in _shown(trace)]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _round(trace: Trace, interval: Interval) -> int:
    """The median time from a step of a slot to that slot's next on the first stage, at least 1."""
    begun: dict[int, int] = {}
    rounds = []
    for span in trace.stages[0].spans:
        facts = trace.steps.get(span.step)
        if span.activity == "compute" and facts is not None and span.start < interval[1]:
            if begun.get(facts.slot, -1) >= interval[0]:
                rounds.append(span.start - begun[facts.slot])
            begun[facts.slot] = span.start
    return max(sorted(rounds)[len(rounds) // 2], 1) if rounds else interval[1] - interval[0]


def _shown(trace: Trace) -> list[Lane]:
    return [*trace.stages, trace.driver]


def _kinds(lane: Lane, trace: Trace) -> set[Kind]:
    return {kind_of(span, trace) for span in lane.spans}


def _share(column: dict[Kind, float], name: str) -> float:
    if name in ("decode", "prefill"):
        wanted = name == "decode"
        return sum(s for kind, s in column.items() if kind[0] == "compute" and kind[2] is wanted)
    return column.get((name, 0, True), 0.0)


def _label(name: str, row: int) -> str:
    """One entry a layer in the legend, whatever the number of lanes."""
    return name_of(name) if row == 0 else f"_{name}"
