"""Each sampling setting against its definition, and draws that depend on nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ppinfer.errors import StageError
from ppinfer.messages import NewSequence, SampledToken
from ppinfer.sampling import SamplingParams
from ppinfer.stage import sampler as sampler_module
from ppinfer.stage.sampler import Sampler

VOCAB = 1000


def sampler_of(*sequences: NewSequence) -> Sampler:
    sampler = Sampler(VOCAB)
    for sequence in sequences:
        sampler.add(sequence)
    return sampler


def sample_one(
    logits: torch.Tensor,
    position: int = 5,
    *,
    stop_ids: tuple[int, ...] = (),
    mask: bytes = b"",
    **params: Any,
) -> SampledToken:
    history = tuple(params.pop("history", ()))
    sequence = NewSequence(0, 5, SamplingParams(**params), stop_ids, history)
    return sampler_of(sequence).sample(logits[None], [0], [position], [mask])[0]


def mask_of(*tokens: int) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(VOCAB // 8, "little")


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 3


def test_greedy_takes_the_first_of_the_highest() -> None:
    logits = torch.zeros(VOCAB)
    logits[[7, 3, 900]] = 2.0
    assert sample_one(logits).token == 3
    assert sample_one(logits, temperature=1e-30).token == 3


def test_a_draw_depends_on_seed_position_and_logits_only(logits: torch.Tensor) -> None:
    params = SamplingParams(temperature=1.0, seed=11)
    others = [
        NewSequence(i, 5, SamplingParams(temperature=0.5 + 0.1 * i, seed=i)) for i in range(1, 8)
    ]
    alone = sample_one(logits, temperature=1.0, seed=11)
    rows = torch.stack(
        [
            *(torch.randn(VOCAB) for _ in others[:4]),
            logits,
            *(torch.randn(VOCAB) for _ in others[4:]),
        ]
    )
    order = [*others[:4], NewSequence(99, 5, params), *others[4:]]
    sampler = sampler_of(*order)
    together = sampler.sample(rows, [s.seq_id for s in order], [5] * len(order))
    assert together[4].token == alone.token
    tokens = {sample_one(logits, position=p, temperature=1.0, seed=11).token for p in range(40)}
    assert len(tokens) > 5
    tokens = {sample_one(logits, temperature=1.0, seed=s).token for s in range(40)}
    assert len(tokens) > 5


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        ({"temperature": 0.7}, []),
        ({"temperature": 1.3, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 3.0, "top_p": 0.97}, [TopPLogitsWarper(0.97)]),
        ({"temperature": 1.0, "min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.1, "top_k": 50, "top_p": 0.8, "min_p": 0.05},
            [TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
        ),
    ],
)
def test_draws_follow_the_distribution_of_transformers(
    params: dict[str, Any], warpers: list[Any], logits: torch.Tensor
) -> None:
    draws = 4000
    processors = LogitsProcessorList([TemperatureLogitsWarper(params["temperature"]), *warpers])
    probs = torch.softmax(processors(torch.zeros(1, 1, dtype=torch.long), logits[None])[0], -1)
    counts = Counter(sample_one(logits, seed=seed, **params).token for seed in range(draws))
    assert all(probs[token] > 0 for token in counts), "drew a token that was filtered out"
    frequency = torch.zeros(VOCAB)
    for token, count in counts.items():
        frequency[token] = count / draws
    deviation = (probs * (1 - probs) / draws).sqrt()
    assert torch.all((frequency - probs).abs() <= 5 * deviation + 1e-3)


def test_repetition_penalty_is_that_of_transformers(logits: torch.Tensor) -> None:
    history = [1, 5, int(logits.argmax()), 5]
    expected = RepetitionPenaltyLogitsProcessor(2.5)(torch.tensor([history]), logits[None])[0]
    token = sample_one(logits, repetition_penalty=2.5, history=history).token
    assert token == int(expected.argmax()) != int(logits.argmax())


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    logits = torch.zeros(VOCAB)
    logits[1], logits[2] = 1.0, 0.9
    for params, expected in (
        ({"presence_penalty": 0.5}, [1, 2, 1, 1]),
        ({"frequency_penalty": 0.06}, [1, 1, 2, 1, 2]),
    ):
        sequence = NewSequence(0, 2, SamplingParams(**params), (), (1, 1))
        sampler = sampler_of(sequence)
        drawn = [sampler.sample(logits[None], [0], [2 + i])[0].token for i in range(len(expected))]
        assert drawn == expected


def test_min_tokens_forbids_the_end_until_then() -> None:
    logits = torch.zeros(VOCAB)
    logits[9], logits[4] = 5.0, 1.0
    tokens = [sample_one(logits, 5 + i, stop_ids=(9,), min_tokens=3).token for i in range(5)]
    assert tokens == [4, 4, 4, 9, 9]


def test_logprobs_are_of_the_unchanged_logits(logits: torch.Tensor) -> None:
    expected = torch.log_softmax(logits.double(), -1)
    sampled = sample_one(logits, temperature=2.0, top_k=3, seed=1, logprobs=4)
    assert sampled.logprob == pytest.approx(float(expected[sampled.token]))
    best = torch.topk(expected, 4)
    assert sampled.top_ids == tuple(best.indices.tolist())
    assert sampled.top_logprobs == pytest.approx(best.values.tolist())
    assert sample_one(logits, logprobs=0).top_ids == ()
    assert sample_one(logits).logprob is None


PATHS = pytest.mark.parametrize("path", ["native", "torch"])


def use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "torch":
        monkeypatch.setattr(sampler_module, "usable_kernels", lambda _: None)


@PATHS
def test_a_mask_that_allows_all_changes_nothing(
    path: str, logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path, monkeypatch)
    everything = b"\xff" * (VOCAB // 8)
    for params in (
        {}, {"temperature": 0.8}, {"temperature": 2.0, "top_p": 0.9}, {"repetition_penalty": 2.0},
        {"temperature": 1.0, "top_k": 20, "logit_bias": {7: 5.0}, "logprobs": 3},
    ):  # fmt: skip
        for seed in range(20):
            given = {**params, "seed": seed, "history": (1, 2, int(logits.argmax()))}
            assert sample_one(logits, mask=everything, **given) == sample_one(logits, **given)


@PATHS
def test_a_mask_wins_over_everything(
    path: str, logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path, monkeypatch)
    allowed = (3, 64, 700, 999)
    mask = mask_of(*allowed)
    best = max(allowed, key=lambda token: float(logits[token]))
    assert sample_one(logits, mask=mask).token == best != int(logits.argmax())
    drawn = {
        sample_one(logits, mask=mask, temperature=5.0, seed=seed, logit_bias={8: 100.0}).token
        for seed in range(60)
    }
    assert drawn == set(allowed)
    # What min_tokens forbids, a mask may need: the driver has thought of that.
    assert sample_one(logits, mask=mask_of(9), stop_ids=(9,), min_tokens=3).token == 9
    impossible = torch.full((VOCAB,), 1.0)
    impossible[list(allowed)] = -torch.inf
    assert sample_one(impossible, mask=mask).token == 3
    assert sample_one(impossible, mask=mask, temperature=1.0, seed=4).token in allowed
    infinite = logits.clone()
    infinite[[5, 64]] = torch.inf
    assert sample_one(infinite, mask=mask, temperature=1.0, seed=4).token == 64
    logprobs = torch.log_softmax(logits.double(), -1)
    assert sample_one(logits, mask=mask, logprobs=1).logprob == pytest.approx(float(logprobs[best]))


def test_masks_are_of_their_own_rows(logits: torch.Tensor) -> None:
    sequences = [NewSequence(i, 5, SamplingParams()) for i in range(3)]
    found = sampler_of(*sequences).sample(
        logits.expand(3, -1), range(3), [5] * 3, [mask_of(8), b"", mask_of(9)]
    )
    assert [sampled.token for sampled in found] == [8, int(logits.argmax()), 9]


def test_logits_that_are_no_numbers_are_refused(logits: torch.Tensor) -> None:
    logits[5] = torch.nan
    with pytest.raises(StageError, match="no numbers"):
        sample_one(logits)


def test_every_token_can_be_drawn_at_the_edges_of_the_interval() -> None:
    from ppinfer.stage.draw import _inverse_cdf

    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    assert _inverse_cdf(probs, 0.0) == 1
    assert _inverse_cdf(probs, 0.4999) == 1
    assert _inverse_cdf(probs, 0.5) == 3
    assert _inverse_cdf(probs, 1.0) == 3
