"""The study's tables: each function simulates what it needs and returns lines of Markdown.

What plots show is returned beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from study_cases import DEVICES, EAGER, MODELS, NAMES, PLACES, STAGES, Case, Run, Runs

LINKS = ("nvlink4", "infiniband-ndr", "pcie4", "ethernet-100", "ethernet-25", "ethernet-10")
LINK_NAMES = {
    "nvlink4": "NVLink 4", "infiniband-ndr": "InfiniBand NDR", "pcie4": "PCIe 4 x16",
    "ethernet-100": "100 GbE", "ethernet-25": "25 GbE", "ethernet-10": "10 GbE",
}  # fmt: skip
SEQUENCE = 2048
"""Tokens of a sequence, where it is asked how many fit."""
NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    align = ["---", *["--:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, align, *rows)]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}"


def percent(part: float) -> str:
    return f"{100 * part:.0f}%"


def busy(run: Run) -> float:
    assert run.outcome is not None
    return sum(stage.busy_share for stage in run.outcome.stages) / len(run.outcome.stages)


# ---------------------------------------------------------------- by depth


def depth_cases() -> list[Case]:
    return [Case(m, d, s) for m in MODELS for d in DEVICES for s in STAGES]


def memory(runs: Runs) -> list[str]:
    rows = []
    found = iter(runs.all(depth_cases()))
    for model in MODELS:
        for device in DEVICES:
            cells = [_fitting(next(found)) for _ in STAGES]
            rows.append([f"{model}, {NAMES[device]}", *cells])
    return table(["sequences of 2,048 tokens", *map(str, STAGES)], rows)


def _fitting(run: Run) -> str:
    return number(run.kv_tokens // SEQUENCE) if run.outcome is not None else NONE


def depth(runs: Runs) -> list[str]:
    rows = []
    found = iter(runs.all(depth_cases()))
    for model in MODELS:
        for device in DEVICES:
            cells = []
            for stages in STAGES:
                run = next(found)
                if run.outcome is None:
                    cells.append(NONE)
                    continue
                each = run.rate / stages
                token = run.outcome.between_tokens.p50
                cells.append(f"{number(run.rate)} ({number(each)}), {ms(token)} ms")
            rows.append([f"{model}, {NAMES[device]}", *cells])
    return table(["stages", *map(str, STAGES)], rows)


# ---------------------------------------------------------------- where time goes

PARTS = ("work", "launches", "uneven cut", "links", "fill and drain", "plan", "unequal steps")


@dataclass(frozen=True)
class Shares:
    """Parts of an average stage's time, in the order of ``PARTS``."""

    name: str
    parts: tuple[float, ...]


def shares_of(run: Run, ideal: Run) -> Shares:
    """``ideal`` is the same over links that take no time."""
    outcome, without = run.outcome, ideal.outcome
    assert outcome is not None
    assert without is not None
    stages = outcome.stages
    count, whole = len(stages), outcome.seconds
    launches = sum(
        stage.steps * (layers * EAGER.layer_seconds + EAGER.step_seconds)
        for stage, layers in zip(stages, run.layers, strict=True)
    ) / (count * whole)
    working = [stage.busy_share for stage in stages]
    mean = sum(working) / count

    def waits(*causes: str) -> float:
        return sum(stage.waits[cause] for stage in stages for cause in causes) / (count * whole)

    links = max(0.0, 1 - without.seconds / whole)
    uneven = min(max(working) - mean, waits("wait_input"))
    unequal = max(0.0, waits("wait_input") - uneven - links)
    return Shares(
        f"{run.case.stages}",
        (
            mean - launches, launches, uneven, links, waits("ramp up", "drain"),
            waits("wait_plan", "no request"), unequal,
        ),
    )  # fmt: skip


def time_cases() -> dict[str, list[Case]]:
    return {
        f"{model} on {NAMES[device]}": [Case(model, device, stages) for stages in STAGES]
        for model, device in (("70B", "h100"), ("405B", "h100"), ("70B", "a10"))
    }


def time_shares(runs: Runs) -> dict[str, list[Shares]]:
    found = {}
    for name, cases in time_cases().items():
        real = [run for run in runs.all(cases) if run.outcome is not None]
        ideal = runs.all(replace(run.case, links="ideal") for run in real)
        found[name] = [shares_of(*pair) for pair in zip(real, ideal, strict=True)]
    return found


def time(runs: Runs) -> list[str]:
    rows = [
        [f"{name}, {shares.name}", *map(percent, shares.parts)]
        for name, group in time_shares(runs).items()
        for shares in group
        if shares.name in ("4", "8", "16", "64")
    ]
    return table(["stages", *PARTS], rows)


# ---------------------------------------------------------------- links

LINK_STAGES = (8, 16, 32, 64)


def link_runs(runs: Runs, model: str) -> dict[str, list[Run]]:
    """By link, ``ideal`` first: a run for each of ``LINK_STAGES``."""
    return {
        link: runs.all(Case(model, "h100", stages, links=link) for stages in LINK_STAGES)
        for link in ("ideal", *LINKS)
    }


def links(runs: Runs) -> list[str]:
    rows = []
    for model in MODELS:
        by_link = link_runs(runs, model)
        alone = {
            link: runs.all(Case(model, "h100", s, links=link, places=0) for s in LINK_STAGES)
            for link in LINKS
        }
        for link in LINKS:
            cells = []
            for run, ideal, one in zip(by_link[link], by_link["ideal"], alone[link], strict=True):
                if run.outcome is None or one.outcome is None:
                    cells.append(NONE)
                    continue
                token = one.outcome.between_tokens.p50
                cells.append(f"{percent(run.rate / ideal.rate)}, {token * 1e3:.1f} ms")
            rows.append([f"{model}, {LINK_NAMES[link]}", *cells])
    return table(["stages", *map(str, LINK_STAGES)], rows)


# ---------------------------------------------------------------- what binds

BOUND = (
    ("70B", "h100", 4, None), ("70B", "h100", 16, None), ("70B", "h100", 32, None),
    ("70B", "h100", 16, "ethernet-10"), ("70B", "l40s", 8, None), ("70B", "a10", 8, None),
    ("70B", "a10", 32, None), ("405B", "h100", 16, None), ("405B", "h100", 32, None),
    ("405B", "l40s", 32, None),
)  # fmt: skip
DOUBLED = {
    "memory bandwidth x2": {"bandwidth": 2.0},
    "peak x2": {"peak": 2.0},
    "links x2": {"link": 2.0},
    "launches / 2": {"launch": 0.5},
    "memory x2": {"memory": 2.0},
    "sequences x2": {"places": 2 * PLACES},
}


def binds(runs: Runs) -> list[str]:
    rows = []
    base = [Case(model, device, s, links=link) for model, device, s, link in BOUND]
    found = runs.all(replace(case, **change) for case in base for change in ({}, *DOUBLED.values()))
    each = iter(found)
    for case in base:
        plain = next(each)
        gains = [next(each).rate / plain.rate - 1 for _ in DOUBLED]
        link = f", {LINK_NAMES[case.links]}" if case.links else ""
        name = f"{case.model}, {case.stages} {NAMES[case.device]}{link}"
        rows.append([name, *(f"{gain:+.0%}" for gain in gains)])
    return table(["what would be gained by", *DOUBLED], rows)
