"""A step's costs, measured in this process with a tiny model."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from ppinfer.messages import Message, ProfileRequest, Shutdown, StepCosts
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy
from ppinfer.schedule.pace import Measured
from ppinfer.stage import profile
from ppinfer.stage.profile import Profiler, answer_requests

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def request(
    max_rows: int = 4, threads: int = 1, block_size: int = 16, **changes: Any
) -> ProfileRequest:
    config = LlamaForCausalLMPipelinePolicy().model_config(SMALL | changes)
    return ProfileRequest(
        msgspec.msgpack.encode(config), "fp32", "cpu", block_size, threads, max_rows, 60.0
    )  # fmt: skip


def measure(asked: ProfileRequest) -> StepCosts:
    profiler = Profiler(asked)
    profiler.load()
    return profiler.measure(asked.threads, asked.max_rows, asked.seconds)


def rows_of(points: tuple[tuple[int, float], ...]) -> list[int]:
    return [rows for rows, _ in points]


def test_every_part_of_a_step_is_measured() -> None:
    costs = measure(request())
    assert Measured((costs,)).is_valid(1)
    assert costs.threads == 1
    assert rows_of(costs.decode) == [1, 2, 4]
    assert rows_of(costs.prefill)[0] == 128
    assert rows_of(costs.head) == [1, 4]
    assert all(seconds > 0 for _, seconds in (*costs.decode, *costs.prefill, *costs.head))


@pytest.mark.parametrize(("max_rows", "rows"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 4])])
def test_rows_go_up_to_the_most_that_can_run(max_rows: int, rows: list[int]) -> None:
    assert rows_of(measure(request(max_rows)).decode) == rows


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 1},
        {"max_position_embeddings": 100},
        {"num_hidden_layers": 1},
        {"tie_word_embeddings": True},
    ],
)
def test_models_at_the_edge(changes: dict[str, Any]) -> None:
    assert Measured((measure(request(block_size=32, **changes)),)).is_valid(1)


def test_a_head_larger_than_need_be_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_HEAD_BYTES", 40 * 4 * 10)
    asked = request(vocab_size=1000)
    profiler = Profiler(asked)
    profiler.load()
    logits = profiler._last.logits(torch.zeros(1, 40))
    assert logits.shape == (1, 10)
    assert Measured((profiler.measure(1, 2, 0.05),)).is_valid(1)


def test_few_blocks_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_CACHE_BYTES", 1)
    profiler = Profiler(request(max_rows=16))
    assert profiler._num_blocks == 64
    profiler.load()
    assert rows_of(profiler.measure(1, 16, 1.0).decode)[-1] == 16


def test_no_time_leaves_the_ends_of_each_curve() -> None:
    profiler = Profiler(request(max_rows=64, max_position_embeddings=2048))
    profiler.load()
    costs = profiler.measure(1, 64, 0.0)
    assert rows_of(costs.decode) == [1, 64]
    assert rows_of(costs.head) == [1, 64]
    assert rows_of(costs.prefill) == [128, 512]


@pytest.mark.slow
def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    assert measure(request(threads=before + 1)).threads == before + 1
    assert torch.get_num_threads() == before


def test_requests_are_answered_until_something_else_comes() -> None:
    answers: list[StepCosts | None] = []
    rest: list[Message] = [request(threads=1, max_rows=1), Shutdown()]
    last = answer_requests(request(), 1, answers.append, lambda: rest.pop(0))
    assert isinstance(last, Shutdown)
    assert [rows_of(costs.decode) for costs in answers if costs] == [[1, 2, 4], [1]]


def test_without_memory_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "free_bytes", lambda device, local_size: 1000)
    answers: list[StepCosts | None] = []
    answer_requests(request(), 1, answers.append, Shutdown)
    assert answers == [None]
