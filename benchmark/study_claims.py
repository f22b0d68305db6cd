"""Claims about other systems' schedules, tried in the simulator: each is one difference alone."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

from study_cases import Case, Runs, build, requests
from study_tables import ms, number, table

from ppinfer.planner.outcome import Outcome
from ppinfer.planner.rivals import (
    DrainingRounds,
    accidental_cohorts,
    equal_tokens,
    fixed_cohorts,
    never_moved,
    prompts_stay,
)
from ppinfer.planner.simulate import Schedule, ScheduleMaker, own_schedule, simulate
from ppinfer.planner.traffic import Arrival, arrivals, static_batch
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.tuning import Tuning


def _simulate(case: Case, load: list[Arrival], schedule: ScheduleMaker) -> Outcome:
    return simulate(build(case).pipeline, load, schedule=schedule)


# ---------------------------------------------------------------- draining rounds

PROMPT, MEAN, MOST = 256, 128, 512


def _lengths(kind: str, count: int) -> list[int]:
    draw = random.Random(0)
    if kind == "all 128":
        return [MEAN] * count
    if kind == "even, 1 to 255":
        return [draw.randint(1, 2 * MEAN - 1) for _ in range(count)]
    return [min(MOST, 1 + int(draw.expovariate(1 / MEAN))) for _ in range(count)]


LENGTHS = ("all 128", "even, 1 to 255", "exponential, mean 128, at most 512")


def draining(runs: Runs) -> list[str]:
    cells = [(stages, kind) for stages in (4, 16) for kind in LENGTHS]
    jobs = []
    for stages, kind in cells:
        case = Case("70B", "h100", stages, prompts=(PROMPT, PROMPT), outputs=(1, MOST))
        load = [Arrival(0.0, PROMPT, new, MOST) for new in _lengths(kind, 4 * 16 * stages)]
        jobs += [(case, load, own_schedule), (case, load, DrainingRounds)]
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for stages, kind in cells:
        own, rounds = next(found), next(found)
        rows.append(
            [str(stages), kind, number(rounds.throughput), number(own.throughput),
             f"{own.throughput / rounds.throughput - 1:+.0%}",
             f"{rounds.first_token.mean:.1f} / {own.first_token.mean:.1f}"]
        )  # fmt: skip
    head = ("stages", "output lengths", "rounds, tokens/s", "own", "gain", "first token, s")
    return table(head, rows)


# ---------------------------------------------------------------- cohorts

ACCIDENT = (7, 13, 2, 10)


def fixed(runs: Runs) -> list[str]:
    """Decoding alone: a long run less a shorter one, in which all prompts are computed already."""
    cells = [
        (1, 128, 64, 128), (1, 2048, 256, 384), (1, 8192, 512, 768),
        (8, 128, 96, 160), (8, 1024, 384, 448), (40, 32, 64, 128),
    ]  # fmt: skip
    jobs = []
    for times, context, short, long in cells:
        for sizes in ((8,) * 4, ACCIDENT):
            schedule = partial(_fixed, tuple(times * size for size in sizes))
            for new in (short, long):
                case = Case(
                    "70B", "h100", 4, places=8 * times, prompts=(context, context),
                    outputs=(new, long),
                )  # fmt: skip
                jobs.append((case, static_batch(32 * times, context, new), schedule))
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for times, context, short, long in cells:
        seconds = [next(found).seconds for _ in range(4)]
        even, uneven = seconds[1] - seconds[0], seconds[3] - seconds[2]
        tokens = 32 * times * (long - short)
        sizes = "/".join(str(times * size) for size in ACCIDENT)
        rows.append(
            [f"{sizes} for {8 * times} each", f"{context + (short + long) // 2:,}",
             number(tokens / uneven), number(tokens / even), f"{uneven / even - 1:+.0%}"]
        )  # fmt: skip
    return table(("micro-batches", "context", "uneven, tokens/s", "even", "gain"), rows)


def _fixed(sizes: tuple[int, ...], manager: MicroBatchManager, tuning: Tuning) -> Schedule:
    return fixed_cohorts(sizes)(manager, tuning)


def accidental(runs: Runs) -> list[str]:
    """Time between tokens (median, mean, p99 in ms) of requests that arrive at random."""
    cells = [(4, 512, 3.0), (4, 4096, 0.8), (8, 1024, 5.0)]
    schedules = (accidental_cohorts, never_moved, own_schedule)
    jobs = []
    for stages, context, rate in cells:
        prompts, outputs = (context // 2, context * 3 // 2), (64, 192)
        case = Case("70B", "h100", stages, places=32, prompts=prompts, outputs=outputs)
        load = arrivals(200, prompts, outputs, rate=rate)
        jobs += [(case, load, schedule) for schedule in schedules]
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for stages, context, rate in cells:
        tokens = [next(found).between_tokens for _ in schedules]
        each = [f"{ms(t.p50)}, {ms(t.mean)}, {ms(t.p99)}" for t in tokens]
        rows.append([f"{stages}", f"{context:,}", f"{rate:g}", *each])
    head = ("stages", "prompt, mean", "requests/s", "by accident", "placed, never moved",
            "own: placed and moved")  # fmt: skip
    return table(head, rows)


def moving(runs: Runs) -> list[str]:
    """All requests there at the beginning: moved between micro-batches, or not."""
    cells = [
        Case("70B", "h100", 4), Case("70B", "h100", 4, places=128), Case("70B", "h100", 16),
        Case("70B", "h100", 16, peak=2.0), Case("70B", "h100", 32),
    ]  # fmt: skip
    jobs = [
        (case, requests(case), schedule) for case in cells
        for schedule in (own_schedule, never_moved)
    ]  # fmt: skip
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for case in cells:
        own, stay = next(found), next(found)
        peak = ", peak x2" if case.peak > 1 else ""
        rows.append(
            [f"{case.stages} stages, {case.places} sequences each{peak}",
             number(own.throughput), number(stay.throughput),
             f"{stay.throughput / own.throughput - 1:+.0%}",
             ms(own.between_tokens.p99), ms(stay.between_tokens.p99)]
        )  # fmt: skip
    head = ("pipeline", "moved, tokens/s", "never moved", "gain", "p99 between tokens, moved, ms",
            "never moved")  # fmt: skip
    return table(head, rows)


# ---------------------------------------------------------------- chunks

CHUNK = 2048


def one_prompt(runs: Runs) -> list[str]:
    """Time to the first token of one long prompt that has the pipeline to itself."""
    cells = [(stages, prompt) for stages in (4, 16, 32) for prompt in (32_000, 128_000)]
    schedules = (
        prompts_stay, partial(prompts_stay, by_time=False), own_schedule, equal_tokens,
    )  # fmt: skip
    jobs = []
    for stages, prompt in cells:
        case = Case(
            "70B", "h100", stages, places=1, chunk=CHUNK, prompts=(prompt, prompt), outputs=(2, 2)
        )
        jobs += [(case, static_batch(1, prompt, 2), schedule) for schedule in schedules]
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for stages, prompt in cells:
        seconds = [next(found).first_token.mean for _ in schedules]
        rows.append(
            [f"{stages}", f"{prompt:,}", *(f"{s:.2f}" for s in seconds),
             f"{seconds[3] / seconds[2] - 1:+.0%}"]
        )  # fmt: skip
    head = ("stages", "prompt", "two under way: equal time, s", "equal tokens",
            "all under way: equal time, s", "equal tokens", "gain of equal time there")  # fmt: skip
    return table(head, rows)


def long_among_short(runs: Runs) -> list[str]:
    """Long prompts that arrive among requests whose answers somebody reads."""
    cells = [(4, 16_000), (4, 64_000), (16, 64_000)]
    jobs = []
    for stages, prompt in cells:
        case = Case(
            "70B", "h100", stages, places=8, chunk=CHUNK, prompts=(256, prompt), outputs=(128, 128)
        )
        chats = arrivals(200, (256, 256), (128, 128), rate=2.0)
        longs = [replace(chats[0], at=at, prompt=prompt) for at in range(5, 95, 15)]
        load = sorted([*chats, *longs], key=lambda arrival: arrival.at)
        jobs += [(case, load, schedule) for schedule in (equal_tokens, own_schedule)]
    found = iter(runs.map(_simulate, *zip(*jobs, strict=True)))
    rows = []
    for stages, prompt in cells:
        both = [next(found) for _ in range(2)]
        cells_of = [
            f"{ms(o.between_tokens.p50)}, {ms(o.between_tokens.p99)} ms, {o.first_token.p50:.2f}, "
            f"{o.first_token.p99:.1f} s"
            for o in both
        ]
        rows.append([str(stages), f"{prompt:,}", *cells_of])
    head = ("stages", "long prompts", "equal tokens: between tokens (median, p99), first token",
            "equal time")  # fmt: skip
    return table(head, rows)
