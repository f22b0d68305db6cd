"""The study's tables: each function simulates what it needs and returns lines of Markdown.

What plots show is returned beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from study_cases import DEVICES, MODELS, NAMES, PLACES, STAGES, Case, Run, Runs

from ppinfer.planner.cost import Efficiency

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
    efficiency, stages = Efficiency(), outcome.stages
    count, whole = len(stages), outcome.seconds
    launches = sum(
        stage.steps * (layers * efficiency.layer_seconds + efficiency.step_seconds)
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


MICRO = (("70B", "h100", 8), ("70B", "h100", 16), ("70B", "a10", 16), ("405B", "h100", 16))


def micro_batches(runs: Runs) -> list[str]:
    """Of the same sequences in all."""
    rows = []
    for model, device, stages in MICRO:
        base = Case(model, device, stages)
        counts = (stages // 2, stages, 3 * stages // 2, 2 * stages)
        cases = [*(replace(base, micro_batches=count) for count in counts),
                 replace(base, tuned=True)]  # fmt: skip
        *fixed, tuned = runs.all(cases)
        rows.append(
            [
                f"{model}, {stages} {NAMES[device]}",
                *(f"{number(run.rate)}/s, {percent(busy(run))}" for run in fixed),
                f"{tuned.micro_batches}, chunk {tuned.chunk}: {number(tuned.rate)}/s",
            ]
        )
    head = ("micro-batches a stage", "0.5", "1", "1.5", "2", "left to the engine")
    return table(head, rows)


# ---------------------------------------------------------------- one request, many, side by side


def one_or_many(runs: Runs) -> list[str]:
    rows = []
    for model, device in (("70B", "h100"), ("70B", "l40s"), ("405B", "h100")):
        for places, words in ((0, "one request"), (4, "4 a stage"), (16, "16 a stage")):
            cells = []
            for run in runs.all(Case(model, device, s, places=places) for s in STAGES):
                if run.outcome is None:
                    cells.append(NONE)
                    continue
                token, share = run.outcome.between_tokens.p50, busy(run)
                cells.append(f"{ms(token)} ms, {number(run.rate)}/s, {percent(share)}")
            rows.append([f"{model}, {NAMES[device]}, {words}", *cells])
    return table(["stages", *map(str, STAGES)], rows)


SIDE_BY_SIDE = (
    ("70B", "h100"), ("70B", "l40s"), ("70B", "a10"), ("405B", "h100"), ("405B", "l40s"),
)  # fmt: skip
SEQUENCES = 1024
"""That run at once on all 64 devices."""


def side_cases(model: str, device: str) -> dict[int, Case]:
    """By the number of pipelines that share 64 devices and the load."""
    return {
        64 // stages: Case(model, device, stages, places=SEQUENCES // 64)
        for stages in (64, 32, 16, 8, 4)
    }


def side_by_side(runs: Runs) -> list[str]:
    rows = []
    for model, device in SIDE_BY_SIDE:
        cases = side_cases(model, device)
        cells = []
        for pipelines, run in zip(cases, runs.all(cases.values()), strict=True):
            if run.outcome is None:
                cells.append(NONE)
                continue
            room = pipelines * run.kv_tokens // SEQUENCE
            token = run.outcome.between_tokens.p50
            cells.append(f"{number(pipelines * run.rate)}/s, {ms(token)} ms, {number(room)}")
        rows.append([f"{model}, 64 {NAMES[device]}", *cells])
    heads = [f"{64 // stages} x {stages}" for stages in (64, 32, 16, 8, 4)]
    return table(["pipelines x stages", *heads], rows)


# ---------------------------------------------------------------- arriving requests

ARRIVING = (("70B", "h100", 8), ("70B", "l40s", 8), ("405B", "h100", 16))
LOADS = (0.25, 0.5, 0.75, 0.9)
MEAN_OUTPUT = 128


def arriving(runs: Runs) -> list[str]:
    rows = []
    for model, device, stages in ARRIVING:
        (full,) = runs.all([Case(model, device, stages)])
        most = full.rate / MEAN_OUTPUT
        cases = [
            Case(model, device, stages, rate=round(load * most, 3), count=300) for load in LOADS
        ]
        for load, run in zip(LOADS, runs.all(cases), strict=True):
            outcome = run.outcome
            assert outcome is not None
            first, token = outcome.first_token, outcome.between_tokens
            rows.append(
                [
                    f"{model}, {stages} {NAMES[device]}", f"{percent(load)}: {run.case.rate:.1f}/s",
                    f"{ms(first.p50)} / {ms(first.p99)}",
                    f"{ms(token.p50)} / {ms(token.p99)}", percent(busy(run)),
                    percent(outcome.kv_peak * _pool_part(run)),
                ]
            )  # fmt: skip
    head = ("pipeline", "requests", "first token (median / p99), ms", "between tokens, ms",
            "busy", "KV at most")  # fmt: skip
    return table(head, rows)


def _pool_part(run: Run) -> float:
    """Of the memory for keys and values, the part that as many sequences as run can use."""
    longest = run.case.prompts[1] + run.case.outputs[1]
    return min(1.0, run.case.places * run.case.stages * longest / run.kv_tokens)
