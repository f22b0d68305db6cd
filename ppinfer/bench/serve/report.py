"""What was found, as tables and panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ppinfer.bench.plots import Line, Panel
from ppinfer.bench.serve.figures import Level, Percentiles
from ppinfer.bench.serve.run import Served
from ppinfer.bench.tables import Table, number, percent

_BUSY = 0.7
"""Share of a core above which this program itself may be what is slow."""
_LATE = 0.02
"""Seconds after its arrival by which a request should be on its way."""
_OFF = 0.05
"""Share by which lengths may miss what was wanted before it is said."""
_SHADES = {"p50": "#9ecae1", "p90": "#4c78a8", "p99": "#1f3552"}
_SHARES = tuple(_SHADES)


def tables(found: Served) -> list[Table]:
    """Throughput and latency, a row each level, for a terminal of 80 columns."""
    has_goal = found.objective is not None
    rates = Table(
        f"{found.url}, {found.model}, {found.endpoint}: {found.requests}",
        ["load", "done", "failed", "req/s", "input tok/s", "output tok/s"]
        + (["good/s"] if has_goal else [])
        + ["client"],
    )
    waits = Table(
        "Latency from intended arrival: p50 / p90 / p99",
        ["load", "first token, ms", "between tokens, ms", "whole answer, s"],
    )
    more = Table(
        "By request: p50 / p90 / p99",
        ["load", "time per output token, ms", "late in being sent, ms"],
    )
    for level in found.levels:
        good = [] if level.goodput is None else [level.goodput]
        figures = [level.requests_per_second, level.input_per_second, level.output_per_second]
        row = [level.name, f"{level.done:,}", f"{level.failed:,}"]
        row += [*map(number, [*figures, *good]), percent(level.client_share)]
        rates.rows.append(row)
        waits.rows.append(
            [level.name, _three(level.ttft, 1e3), _three(level.itl, 1e3), _three(level.e2e, 1.0)]
        )
        more.rows.append([level.name, _three(level.tpot, 1e3), _three(level.queue, 1e3)])
    if has_goal:
        rates.notes.append(f"good/s: requests/s that met the objective ({found.objective}).")
    rates.notes.append("client: processor time of this program, as a share of one core.")
    rates.notes += found.notes
    rates.notes += [note for level in found.levels for note in _notes(level)]
    return [rates, waits, more]


def panels(found: Served) -> list[Panel]:
    """Throughput and latency by level: four panels, one of goodput where there is an objective."""
    rates = [("output", lambda level: level.output_per_second)]
    made = [_panel(found, "output tokens/s", "tokens/s", rates)]
    if found.objective is not None:
        made.append(
            _panel(
                found,
                "requests/s",
                "requests/s",
                [
                    ("answered", lambda level: level.requests_per_second),
                    ("within the objective", lambda level: level.goodput),
                ],
            )
        )
    else:
        made.append(_waits(found, "whole answer", "e2e", lambda level: level.e2e))
    made.append(_waits(found, "time to first token", "ttft", lambda level: level.ttft))
    made.append(_waits(found, "time between tokens", "itl", lambda level: level.itl))
    return made


def _waits(
    found: Served, title: str, measure: str, of: Callable[[Level], Percentiles | None]
) -> Panel:
    """Percentiles of a time, and its limit if it has one."""
    panel = _panel(found, title, "ms", [(share, _share(of, share)) for share in _SHARES])
    lines = [replace(line, color=_SHADES[line.name]) for line in panel.lines]
    limit = found.limits.get(measure)
    return replace(panel, lines=lines, limit=None if limit is None else limit * 1e3)


def _share(
    of: Callable[[Level], Percentiles | None], share: str
) -> Callable[[Level], float | None]:
    def milliseconds(level: Level) -> float | None:
        percentiles = of(level)
        return None if percentiles is None else getattr(percentiles, share) * 1e3

    return milliseconds


def _panel(
    found: Served,
    title: str,
    unit: str,
    lines: Sequence[tuple[str, Callable[[Level], float | None]]],
) -> Panel:
    levels = found.levels
    by_rate = levels[0].concurrency is None
    drawn = []
    for name, value in lines:
        points = [(x, y) for x, level in enumerate(levels) if (y := value(level)) is not None]
        drawn.append(Line(name, [x for x, _ in points], [y for _, y in points]))
    return Panel(
        f"{found.model}: {title}",
        "requests/s that arrive" if by_rate else "requests in flight",
        unit,
        drawn,
        ticks=[level.label for level in levels],
    )


def _three(times: Percentiles | None, scale: float) -> str:
    if times is None:
        return "–"
    return " / ".join(number(getattr(times, share) * scale) for share in _SHARES)


def _notes(level: Level) -> list[str]:
    """What a reader must know before believing a level's figures."""
    notes = []
    if level.cut_off:
        notes.append(f"{level.name}: the run was ended with {level.cut_off:,} unanswered.")
    for status, count in level.failures.items():
        why = f": {level.why[status]}" if status in level.why else ""
        notes.append(f"{level.name}: {count:,} failed, {status}{why}")
    if level.client_share > _BUSY:
        notes.append(
            f"{level.name}: this program was busy {level.client_share:.0%} of the time, so the "
            "server may be faster than it looks."
        )
    if level.queue is not None and level.queue.p99 > _LATE:
        notes.append(
            f"{level.name}: requests were sent up to {level.queue.max * 1e3:,.0f} ms after they "
            "arrived; their latencies include it."
        )
    if level.wanted_output and level.output_tokens < (1 - _OFF) * level.wanted_output:
        notes.append(
            f"{level.name}: answers had {level.output_tokens / level.wanted_output:.0%} of the "
            "tokens they could have; --ignore-eos makes them go on to the end."
        )
    if level.wanted_input and level.counted:
        share = level.input_tokens / level.wanted_input
        if abs(share - 1) > _OFF:
            notes.append(f"{level.name}: prompts had {share:.0%} of the tokens that were wanted.")
    if level.output_tokens > level.chunks * (1 + _OFF) and level.chunks:
        notes.append(
            f"{level.name}: {level.output_tokens / level.chunks:.1f} tokens came at a time; the "
            "time between tokens is that between pieces of text."
        )
    return notes
