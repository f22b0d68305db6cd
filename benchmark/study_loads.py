"""The study's tables of different loads on the same devices: see ``study_tables``."""

from __future__ import annotations

from dataclasses import replace

from study_cases import NAMES, STAGES, Case, Run, Runs
from study_tables import NONE, SEQUENCE, busy, ms, number, percent, table

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
LOADS = (0.25, 0.5, 0.9, 1.2)
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
