"""Rival schedules plan valid steps to the end, and differ in what they are named for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from ppinfer.config import EngineConfig
from ppinfer.messages import StepPlan
from ppinfer.planner.assemble import assemble
from ppinfer.planner.cost import USUAL
from ppinfer.planner.hardware import load_catalog
from ppinfer.planner.pipeline import PipelineModel
from ppinfer.planner.rivals import (
    DrainingRounds,
    accidental_cohorts,
    equal_tokens,
    fixed_cohorts,
    never_moved,
    prompts_stay,
)
from ppinfer.planner.shape import ModelShape
from ppinfer.planner.simulate import ScheduleMaker, own_schedule, simulate
from ppinfer.planner.traffic import Arrival, arrivals, static_batch
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.schedule.tuning import Tuning

SHAPE = ModelShape(
    name="test", num_layers=16, hidden_size=4096, layer_parameters=200_000_000,
    embedding_parameters=130_000_000, head_parameters=130_000_000, q_size=4096, kv_size=1024,
    vocab_size=32_000, max_position=65_536,
)  # fmt: skip
RIVALS = [equal_tokens, accidental_cohorts, never_moved, prompts_stay, DrainingRounds]


def pipeline(stages: int = 4, sequences: int = 16, chunk: int = 256, **other) -> PipelineModel:
    catalog = load_catalog()
    config = EngineConfig(
        pp_size=stages, max_num_seqs=sequences, num_micro_batches=stages, max_prefill_tokens=chunk,
        **other,
    )  # fmt: skip
    devices, links = [catalog.device("a10")] * stages, [catalog.link("pcie4")] * (stages - 1)
    return assemble(SHAPE, devices, links, "bf16", config, context=512, efficiency=USUAL).pipeline


class Recording:
    """Any schedule, whose plans are kept."""

    def __init__(self, make: ScheduleMaker) -> None:
        self.make = make
        self.plans: list[StepPlan] = []

    def __call__(self, manager: MicroBatchManager, tuning: Tuning) -> Recording:
        self._inner = self.make(manager, tuning)
        return self

    def next_plan(self) -> StepPlan | None:
        plan = self._inner.next_plan()
        if plan is not None:
            self.plans.append(plan)
        return plan


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("num_blocks", [None, 60])
def test_every_request_gets_its_tokens(rival: ScheduleMaker, num_blocks: int | None) -> None:
    requests = [replace(r, limit=64) for r in arrivals(30, (1, 700), (1, 40), rate=20.0)]
    model = pipeline(max_model_len=1024)
    if num_blocks is not None:  # too few: sequences must give way and start over
        block = 16 * SHAPE.kv_bytes(SHAPE.num_layers // 4, "bf16")
        model = pipeline(max_model_len=1024, kv_cache_memory=block * num_blocks)
    outcome = simulate(model, requests, schedule=rival)
    assert outcome.requests == 30
    assert outcome.new_tokens == sum(request.new for request in requests)


def test_a_round_begins_when_the_last_has_ended() -> None:
    requests = [Arrival(0.0, 64, 4 if i % 8 else 32, 64) for i in range(24)]
    recording = Recording(DrainingRounds)
    simulate(pipeline(sequences=8), requests, schedule=recording)
    introduced = [seq.seq_id for plan in recording.plans for seq in plan.new]
    assert introduced == list(range(24))
    rounds = [{step.seq_id // 8 for step in plan.steps} for plan in recording.plans]
    assert all(len(of_a_step) == 1 for of_a_step in rounds)
    order = [of_a_step.pop() for of_a_step in rounds]
    assert order == sorted(order)


def test_a_slot_of_a_round_decodes_when_its_prompts_are_computed() -> None:
    recording = Recording(DrainingRounds)
    simulate(pipeline(stages=2, sequences=8), static_batch(8, 200, 8), schedule=recording)
    for slot in (0, 1):
        plans = [plan for plan in recording.plans if plan.slot == slot]
        draws = [len(plan.sampled) for plan in plans if plan.num_tokens == len(plan.steps)]
        assert draws == [4] * 7
        assert [plan.num_tokens for plan in plans[:4]] == [256, 256, 256, 32]


def test_draining_costs_most_where_lengths_differ() -> None:
    def slower(outputs: tuple[int, ...]) -> float:
        requests = [Arrival(0.0, 100, new, 128) for new in outputs * 12]
        own, rival = (
            simulate(pipeline(), requests, schedule=s) for s in (own_schedule, DrainingRounds)
        )
        return rival.seconds / own.seconds

    assert 1.0 < slower((64, 64, 64, 64)) < slower((16, 40, 80, 120)) - 0.2


def test_cohorts_form_by_accident_and_cost_where_rows_do() -> None:
    requests = static_batch(32, 40, 100)
    own, rival = Recording(own_schedule), Recording(accidental_cohorts)
    model = pipeline(sequences=32)
    even, uneven = (simulate(model, requests, schedule=s) for s in (own, rival))
    sizes = [{plan.slot: len(plan.steps) for plan in r.plans[40:100]} for r in (own, rival)]
    assert sizes[0] == {0: 8, 1: 8, 2: 8, 3: 8}
    assert sizes[1] != sizes[0]
    assert sum(sizes[1].values()) == 32
    assert uneven.seconds > even.seconds


def test_cohorts_of_given_sizes_stay_as_they_are() -> None:
    recording = Recording(fixed_cohorts((7, 13, 2, 10)))
    simulate(pipeline(sequences=32), static_batch(32, 40, 100), schedule=recording)
    sizes = {plan.slot: len(plan.steps) for plan in recording.plans[-100:-50]}
    assert sizes == {0: 7, 1: 13, 2: 2, 3: 10}


def test_equal_tokens_take_longer_the_further_a_prompt_is() -> None:
    def chunks(make: ScheduleMaker) -> list[int]:
        recording = Recording(make)
        simulate(pipeline(stages=2, chunk=1024), static_batch(1, 30_000, 2), schedule=recording)
        return [plan.num_tokens for plan in recording.plans if plan.num_tokens > 1]

    own, equal = chunks(own_schedule), chunks(equal_tokens)
    assert set(equal[:-1]) == {1024}
    assert own[0] == 1024 > own[-2]


@pytest.mark.parametrize("by_time", [False, True])
def test_chunks_that_follow_each_other_fill_a_deep_pipeline(by_time: bool) -> None:
    requests = static_batch(1, 20_000, 2)
    model = pipeline(stages=8)
    own = simulate(model, requests, schedule=own_schedule if by_time else equal_tokens)
    stay = simulate(model, requests, schedule=partial(prompts_stay, by_time=by_time))
    assert own.first_token.mean < 0.4 * stay.first_token.mean
