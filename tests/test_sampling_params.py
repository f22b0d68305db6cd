from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ppinfer import messages
from ppinfer.errors import RequestError
from ppinfer.sampling import SamplingParams

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"), ("temperature", NAN), ("temperature", INF), ("temperature", -0.1),
        ("temperature", True),
        ("top_p", 0.0), ("top_p", 2.0), ("top_p", NAN), ("top_k", -5), ("top_k", 1.5),
        ("min_p", -0.1), ("min_p", 1.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", NAN), ("presence_penalty", 2.5),
        ("frequency_penalty", -INF),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**63), ("max_tokens", True),
        ("min_tokens", -1), ("seed", 2**63), ("seed", 1.0), ("logprobs", 21), ("logprobs", -1),
        ("prompt_logprobs", 21), ("prompt_logprobs", -1), ("prompt_logprobs", True),
        ("stop", [""]), ("stop", 3), ("stop", ["x"] * 17), ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"), ("stop_token_ids", [1.0]), ("ignore_eos", 1),
        ("grammar", {"type": "object"}), ("grammar", "[0-9]+"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


def test_no_new_token_where_the_prompt_is_scored() -> None:
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0
    with pytest.raises(RequestError, match="max_tokens must be at least 0, not -1"):
        SamplingParams(max_tokens=-1, prompt_logprobs=0)
    with pytest.raises(RequestError, match="max_tokens must be at least 1, not 0"):
        SamplingParams(max_tokens=0, logprobs=0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match="tempreature"):
        SamplingParams(tempreature=1.0)  # type: ignore[call-arg]


def test_values_are_normalised_and_travel() -> None:
    params = SamplingParams(stop="x", stop_token_ids=[3, 4], seed=-(2**63))  # type: ignore[arg-type]
    assert params.stop == ("x",)
    assert params.stop_token_ids == (3, 4)
    plan = messages.StepPlan(0, 0, [], [messages.NewSequence(1, 2, params)], [])
    assert messages.decode_to_stage(messages.encode(plan)) == plan


def test_a_tiny_temperature_is_greedy() -> None:
    assert SamplingParams().is_greedy
    assert SamplingParams(temperature=1e-30).is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy


def test_messages_of_the_other_side_are_refused() -> None:
    result = messages.encode(messages.StepResult(0, []))
    assert messages.decode_to_driver(result) == messages.StepResult(0, [])
    with pytest.raises(msgspec.DecodeError):
        messages.decode_to_stage(result)
    with pytest.raises(msgspec.DecodeError):
        messages.decode_to_driver(result[:-1])


@pytest.mark.parametrize(
    "bias",
    [[1], "5", {"5": 1.0}, {-1: 1.0}, {True: 1.0}, {5: "x"}, {5: 100.5}, {5: NAN}, {5: True},
     dict.fromkeys(range(1025), 0.0)],
)  # fmt: skip
def test_bad_biases_are_named(bias: Any) -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        SamplingParams(logit_bias=bias)


def test_biases_are_copied_and_travel() -> None:
    given = {5: 1, 9: -100.0}
    params = SamplingParams(logit_bias=given)
    given.clear()
    assert params.logit_bias == {5: 1.0, 9: -100.0}
    plan = messages.StepPlan(0, 0, [], [messages.NewSequence(1, 2, params)], [])
    assert messages.decode_to_stage(messages.encode(plan)) == plan
