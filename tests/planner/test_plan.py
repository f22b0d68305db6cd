"""Plans: what is chosen, what it stands beside, and what is said about it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ppinfer.errors import CapacityError, ConfigError
from ppinfer.planner.advice import answer, binding
from ppinfer.planner.choice import Question
from ppinfer.planner.cost import Efficiency
from ppinfer.planner.hardware import Device, Link
from ppinfer.planner.plan import best_pipeline, make_plan
from ppinfer.planner.shape import ModelShape
from ppinfer.planner.simulate import simulate
from ppinfer.planner.traffic import arrivals, static_batch

MODEL = ModelShape(
    name="small",
    num_layers=8,
    hidden_size=512,
    layer_parameters=4_000_000,
    embedding_parameters=4_000_000,
    head_parameters=4_000_000,
    q_size=512,
    kv_size=512,
    vocab_size=8000,
    max_position=4096,
)
"""80 MB in bf16, and 16 kB of keys and values a token."""
CARD = Device(
    name="card",
    memory=2_000_000_000,
    usable=1_000_000_000,
    bandwidth=100e9,
    peak={"bf16": 20e12},
    source="a test",
)
WIRE = Link(name="wire", bandwidth=10e9, latency=10e-6, source="a test")


EFFICIENCY = Efficiency(
    bandwidth=0.85, kv_bandwidth=0.7, peak=0.6, layer_seconds=60e-6, step_seconds=400e-6
)


def question(load=None, **changes) -> Question:
    load = static_batch(16, 64, 16) if load is None else load
    return Question(
        model=MODEL, dtype="bf16", arrivals=tuple(load), efficiency=EFFICIENCY, **changes
    )


def card(usable: int, **changes) -> Device:
    return replace(CARD, usable=usable, **changes)


def test_all_devices_beside_fewer_and_side_by_side() -> None:
    plan = make_plan(question(), [CARD] * 4, [WIRE] * 3)
    words = {choice.words for choice in plan.others}
    assert {
        "4 x 1 stage side by side", "2 x 2 stages side by side", "1 stage only", "2 stages only",
        "3 stages only",
    } <= words  # fmt: skip
    assert plan.others == tuple(sorted(plan.others, key=lambda choice: -choice.throughput))
    assert len(plan.pipeline.assembled.ranges) == 4
    assert not plan.unfit
    copies = next(c for c in plan.others if c.words == "4 x 1 stage side by side")
    assert copies.num_devices == 4
    assert copies.outcome.requests == 4
    assert copies.throughput == 4 * copies.outcome.throughput


def test_what_is_chosen_is_the_best_of_what_is_simulated() -> None:
    """By trying every cut of two stages, in simulation."""
    asked = question()
    chosen = best_pipeline(asked, [CARD] * 2, [WIRE])
    every = [
        best_pipeline(
            replace(asked, settings=(("partition", (count, MODEL.num_layers - count)),)),
            [CARD] * 2,
            [WIRE],
        ).throughput
        for count in range(1, MODEL.num_layers)
    ]
    assert chosen.throughput >= 0.97 * max(every)


def test_settings_of_the_user_hold() -> None:
    settings = (("max_num_seqs", 4), ("max_prefill_tokens", 32), ("num_micro_batches", 2))
    chosen = best_pipeline(question(settings=settings), [CARD] * 2, [WIRE])
    tuning = chosen.assembled.pipeline.tuning
    assert chosen.config.max_sequences == 4
    assert tuning.max_prefill_tokens == 32
    assert tuning.micro_batches[-1] == 2


def test_no_more_sequences_at_once_than_fit() -> None:
    tight = card(880_000_000)  # workspace is 537 MB of it
    chosen = best_pipeline(question(static_batch(64, 1000, 24)), [tight], [])
    fitting = chosen.kv_tokens // 1024
    assert fitting - 1 <= chosen.config.max_sequences <= fitting < 64
    assert chosen.outcome.requests == 64
    assert not chosen.outcome.preemptions


def test_a_model_that_needs_a_pipeline() -> None:
    half = card(620_000_000)
    plan = make_plan(question(), [half] * 2, [WIRE])
    assert [unfit.words for unfit in plan.unfit] == ["2 x 1 stage side by side", "1 stage only"]
    assert "its weights are 0.08 GB, and 1 x card have 0.62 GB" in plan.unfit[0].reason
    assert answer(plan).startswith("Yes: small in bf16 does not fit on fewer than 2 of these")


def test_a_model_that_does_not_fit_at_all() -> None:
    with pytest.raises(CapacityError, match=r"2 x card have 1\.1 GB .* use more devices"):
        make_plan(question(), [card(550_000_000)] * 2, [WIRE])


def test_copies_are_better_where_memory_is_no_limit() -> None:
    slow = replace(WIRE, latency=1e-3)
    plan = make_plan(question(static_batch(4, 64, 16)), [CARD] * 2, [slow])
    assert answer(plan).startswith("No: each device holds the model, and 2 x 1 stage side by side")


def test_more_sequences_at_once_are_the_reason_for_a_pipeline() -> None:
    tight = card(690_000_000)
    plan = make_plan(question(static_batch(32, 500, 24)), [tight] * 2, [WIRE])
    assert re.search(r"holds the weights once, so that \d+ sequences run", answer(plan))


def test_fewer_devices_that_are_faster_are_named() -> None:
    """And not the copies, which may be slower than they."""
    plan = make_plan(question(), [CARD] * 4, [WIRE] * 3)
    fewer = next(choice for choice in plan.others if choice.words == "3 stages only")
    fast = replace(fewer, outcome=replace(fewer.outcome, seconds=1e-6))
    others = (fast, *(choice for choice in plan.others if choice is not fewer))
    assert answer(replace(plan, others=others)).startswith("No: 3 stages only (")


def test_one_device_needs_no_pipeline() -> None:
    plan = make_plan(question(), [CARD], [])
    assert answer(plan) == "There is one device, and small fits on it: no pipeline."
    assert plan.best is plan.pipeline


def test_unequal_devices_get_unequal_layers_and_are_tried_in_reverse() -> None:
    slow = card(1_000_000_000, name="slow", bandwidth=30e9, peak={"bf16": 6e12})
    plan = make_plan(question(), [CARD, slow], [WIRE])
    fast, other = (last - first for first, last in plan.pipeline.assembled.ranges)
    assert fast > other
    words = {choice.words for choice in plan.others}
    assert {"2 stages in reverse order", "one card alone", "one slow alone"} <= words


def test_where_time_goes_is_said() -> None:
    chosen = best_pipeline(question(arrivals(8, (64, 64), (4, 8), rate=1.0)), [CARD] * 2, [WIRE])
    assert "want of requests" in binding(chosen)


def test_the_same_plan_twice() -> None:
    load = arrivals(12, (10, 200), (4, 24), rate=50.0)
    one, two = (make_plan(question(load), [CARD] * 2, [WIRE]) for _ in range(2))
    assert [c.outcome for c in (one.pipeline, *one.others)] == [
        c.outcome for c in (two.pipeline, *two.others)
    ]
    assert simulate(one.pipeline.assembled.pipeline, load) == one.pipeline.outcome


@pytest.mark.parametrize(
    ("load", "words"),
    [([], "there are no requests"), (static_batch(1, 4000, 97), r"up to 4097 tokens, but small")],
)
def test_impossible_questions(load, words) -> None:
    with pytest.raises(ConfigError, match=words):
        question(load)


def test_a_dtype_that_the_device_lacks() -> None:
    with pytest.raises(ConfigError, match="card does not compute in fp16; choose one of bf16"):
        make_plan(replace(question(), dtype="fp16"), [CARD], [])
