"""Stages joined by links in memory: the same tokens however model and work are divided."""

from __future__ import annotations

import random
import time

import pytest
from support.pipeline_in_threads import PipelineInThreads
from support.small_llama import CUTS, small_llama

from ppinfer.errors import StageError
from ppinfer.messages import (
    NewSequence,
    SequenceStep,
    StatsRequest,
    StepPlan,
)
from ppinfer.models.config import ModelConfig
from ppinfer.sampling import SamplingParams


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return small_llama()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(300) for _ in range(n)] for n in (1, 3, 40, 17, 130, 2, 64, 33, 16)]


@pytest.mark.parametrize("params", [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=12, temperature=1.0, seed=3, top_p=0.9, repetition_penalty=1.2),
])  # fmt: skip
def test_tokens_do_not_depend_on_cut_or_batching(
    config: ModelConfig, prompts: list[list[int]], params: SamplingParams
) -> None:
    expected: list[list[int]] | None = None
    for ranges, slots, size, chunk in zip(
        CUTS, (1, 3, 7, 2), (1, 2, 3, 8), (512, 7, 16, 64), strict=True
    ):
        pipeline = PipelineInThreads(config, ranges)
        outputs = pipeline.generate(
            prompts, params, num_micro_batches=slots, micro_batch_size=size,
            max_prefill_tokens=chunk,
        )  # fmt: skip
        pipeline.close()
        assert not pipeline.errors
        assert [len(o) for o in outputs] == [12] * len(prompts)
        expected = expected or outputs
        assert outputs == expected


def test_the_parts_of_a_stages_time_sum_to_its_wall_clock(
    config: ModelConfig, prompts: list[list[int]]
) -> None:
    started = time.perf_counter()
    pipeline = PipelineInThreads(config, CUTS[1])
    pipeline.generate(prompts, SamplingParams(max_tokens=5))
    pipeline.send(StatsRequest())
    first, last = pipeline.take_stats()
    elapsed = time.perf_counter() - started
    pipeline.close()
    for stats in (first, last):
        parts = stats.compute + stats.sample + stats.prepare
        parts += stats.wait_plan + stats.wait_input + stats.send
        assert stats.wall == pytest.approx(parts)
        assert stats.wall <= elapsed
        assert stats.compute > 0
        assert stats.steps > 5
    assert first.tokens == last.tokens == sum(map(len, prompts)) + 4 * len(prompts)
    assert first.bytes_sent == first.tokens * 48 * 4
    assert last.bytes_sent == 0
    assert first.sample == 0.0


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (StepPlan(1, 0, [], [], []), "step 1 came where 0 was due"),
        (StepPlan(0, 0, [], [], [SequenceStep(5, 0, [1], [0], True)]), "never announced"),
        (
            StepPlan(
                0, 0, [], [NewSequence(5, 17, SamplingParams())],
                [SequenceStep(5, 0, [1] * 17, [0], True)],
            ),
            "too few KV blocks",
        ),
        (
            StepPlan(
                0, 0, [], [NewSequence(5, 1, SamplingParams())],
                [SequenceStep(5, 0, [1], [0], True, mask=b"\xff" * 37)],
            ),
            "mask of sequence 5 is too short",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_follow_is_refused_by_name(
    config: ModelConfig, plan: StepPlan, words: str
) -> None:
    pipeline = PipelineInThreads(config, CUTS[0])
    pipeline.send(plan)
    pipeline._threads[0].join(timeout=60)
    (error,) = pipeline.errors
    assert isinstance(error, StageError)
    assert words in str(error)
    assert error.stage == 0


def test_a_gap_in_a_sequence_is_refused(config: ModelConfig) -> None:
    pipeline = PipelineInThreads(config, CUTS[0])
    new = NewSequence(5, 3, SamplingParams())
    pipeline.send(StepPlan(0, 0, [], [new], [SequenceStep(5, 0, [1, 2, 3], [0], True)]))
    pipeline.results.get(timeout=60)
    pipeline.send(StepPlan(1, 0, [], [], [SequenceStep(5, 4, [1], [], True)]))
    pipeline._threads[0].join(timeout=60)
    assert "goes on at 4, not at 3" in str(pipeline.errors[0])
