"""Draws of the native kernels against their definition in PyTorch (``stage/draw.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppinfer.kernels.native import library, paths
from ppinfer.kernels.sample import look_up
from ppinfer.messages import NewSequence, SampledToken
from ppinfer.sampling import SamplingParams
from ppinfer.stage.adjust import Adjustments
from ppinfer.stage.draw import distribution, draw_token, log_probs
from ppinfer.stage.philox import uniform
from ppinfer.stage.sampler import Sampler

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.02},
    {"temperature": 1e-5},
    {"temperature": 1e30},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.99},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_p": 1 - 1e-12},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 50},
    {"temperature": 2.0, "top_k": 300},
    {"temperature": 0.01, "top_k": 300},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 400, "top_p": 0.95},
]


def draws(logits: torch.Tensor, count: int, mask: bytes = b"", **params: Any) -> list[SampledToken]:
    """``count`` draws from ``logits`` ``(vocab,)`` with seeds 0, 1, ..."""
    sampler = Sampler(logits.numel())
    for seed in range(count):
        sampler.add(NewSequence(seed, 5, SamplingParams(seed=seed, **params)))
    positions = [5 + s % 3 for s in range(count)]
    return sampler.sample(logits.expand(count, -1), range(count), positions, [mask] * count)


def check(logits: torch.Tensor, count: int, mask: bytes = b"", **params: Any) -> None:
    """Every draw is of a token that is kept, and of the one in whose slice the random number is.

    Where tokens reach top_p all but exactly, the kept set may be that of a neighbouring top_p.
    """
    drawn = [sampled.token for sampled in draws(logits, count, mask, **params)]
    if mask:
        sequence = NewSequence(0, 5, SamplingParams())
        logits = Adjustments(sequence, logits.numel()).apply(logits, 5, mask)
    top_p = params.pop("top_p", 1.0)
    around = {top_p, top_p * (1 - 1e-9), min(1.0, top_p * (1 + 1e-9))} if top_p < 1.0 else {1.0}
    assert any(fits(drawn, logits, SamplingParams(top_p=p, **params)) for p in around)


def fits(drawn: list[int], logits: torch.Tensor, params: SamplingParams) -> bool:
    probs = distribution(logits.float(), params)
    ends = (probs.cumsum(0) / probs.sum()).tolist()
    return all(
        probs[token] > 0
        and (ends[token - 1] if token else 0.0) - 1e-9 <= uniform(seed, 5 + seed % 3)
        and uniform(seed, 5 + seed % 3) <= ends[token] + 1e-9
        for seed, token in enumerate(drawn)
    )


def logits_of(size: int, dtype: torch.dtype, spread: float = 3.0) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(size)) * spread).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 1000, 5001])
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_draws_are_those_of_the_definition(
    kernel_path: str, params: dict[str, Any], size: int, dtype: torch.dtype
) -> None:
    check(logits_of(size, dtype), 40, **params)


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_ties_and_forbidden_tokens(kernel_path: str, params: dict[str, Any]) -> None:
    logits = logits_of(700, torch.float32).round()
    logits[::3] = -torch.inf
    check(logits, 200, **params)
    check(torch.zeros(700), 200, **params)
    check(torch.full((130,), -torch.inf), 50, **params)
    logits[[4, 500, 650]] = torch.inf
    check(logits, 50, **params)


@pytest.mark.parametrize("size", [1, 8, 63, 1001])
@pytest.mark.parametrize("params", SETTINGS[::3], ids=str)
def test_masks(kernel_path: str, params: dict[str, Any], size: int) -> None:
    logits = logits_of(size, torch.bfloat16)
    for density in (1, 2, 7):  # of eight bits
        bits = [(7 * i) % 8 < density for i in range(size)]
        mask = sum(bit << i for i, bit in enumerate(bits)).to_bytes((size + 7) // 8, "little")
        if size < 8:
            mask = b"\x7f"  # bits past the vocabulary are nobody's
        check(logits, 20, mask, **params)
        check(torch.full((size,), -torch.inf), 5, mask, **params)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=400),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 410),
    top_p=st.floats(1e-6, 1.0),
    min_p=st.floats(0.0, 0.999),
)
def test_any_setting(kernel_path: str, logits: list[float], **params: Any) -> None:
    check(torch.tensor(logits), 20, **params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [3, 100, 5001])
def test_log_probabilities(kernel_path: str, size: int, dtype: torch.dtype) -> None:
    logits = logits_of(size, dtype).round()  # with ties
    for params in ({"temperature": 0.0}, {"temperature": 0.5, "top_k": 2}):
        for sampled in draws(logits, 8, logprobs=20, **params):
            logprob, ids, values = log_probs(logits.float(), sampled.token, 20)
            assert sampled.logprob == pytest.approx(logprob, abs=1e-8)
            assert sampled.top_ids == ids
            assert sampled.top_logprobs == pytest.approx(values, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_given_tokens_are_looked_up(kernel_path: str, dtype: torch.dtype) -> None:
    """With the same bits as where such a token is drawn, and more or less beside it."""
    kernels = library.active()
    if kernels is None:
        pytest.skip("no native kernels on this path")
    logits = torch.stack([logits_of(1000 + i, dtype)[:1000].round() for i in range(5)])
    logits[4] = -torch.inf
    tokens, tops, highest = [0, 999, 5, 77, 3], [20, 0, 1, 3, 2], logits.argmax(dim=-1).tolist()
    found = look_up(kernels, logits, tokens, highest, tops)
    for row, token, top, drawn in zip(logits, tokens, tops, found, strict=True):
        logprob, ids, values = log_probs(row.float(), token, top)
        assert drawn["logprob"] == pytest.approx(logprob, abs=1e-8)
        assert tuple(drawn["top_ids"][:top]) == ids
        assert drawn["top_logprobs"][:top].tolist() == pytest.approx(values, abs=1e-8)
        (same,) = draws(row, 1, logprobs=top)
        (again,) = look_up(kernels, row[None], [same.token], [int(row.argmax())], [top])
        assert (again["logprob"], again["num_top"]) == (same.logprob, top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_adjusted_logits_have_the_same_bits(kernel_path: str, dtype: torch.dtype) -> None:
    """Greedy among the ten highest, with every penalty: the least difference would be seen."""
    size, prompt = 300, tuple(range(0, 300, 2))
    params = SamplingParams(
        repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.15, min_tokens=9,
        logit_bias={5: 1.5, 6: -100.0, 8: 0.1},
    )  # fmt: skip
    sequence = NewSequence(0, 5, params, (7, 9), prompt)
    sampler, expected = Sampler(size), Adjustments(sequence, size)
    sampler.add(sequence)
    for position in range(5, 65):
        logits = (logits_of(size, torch.float32) + position % 4).to(dtype)
        mask = bytes([0xFF, 0x00, 0x5A, 0xF7] * 10)[: (size + 7) // 8] if position % 3 else b""
        token = draw_token(expected.apply(logits, position, mask), params, 0.0)
        expected.add(token)
        assert sampler.sample(logits[None], [0], [position], [mask])[0].token == token


def mixed(sequences: Sequence[NewSequence], logits: torch.Tensor) -> list[SampledToken]:
    sampler = Sampler(logits.shape[1])
    for sequence in sequences:
        sampler.add(sequence)
    return sampler.sample(logits, [s.seq_id for s in sequences], [9] * len(sequences))


def test_neighbours_threads_and_paths_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 20011
    logits = torch.stack([logits_of(size + i, torch.bfloat16)[:size] for i in range(32)])
    sequences = [
        NewSequence(i, 5, SamplingParams(seed=i, logprobs=3, presence_penalty=i % 2, **params))
        for i, params in enumerate(SETTINGS * 2)
    ]
    found = {}
    threads = torch.get_num_threads()
    for path in paths.available():
        monkeypatch.setenv(library.VARIABLE, path.name)
        library.choice.cache_clear()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found[path.name, count] = mixed(sequences, logits)
            alone = [mixed([s], logits[i : i + 1])[0] for i, s in enumerate(sequences)]
            found[path.name, "alone"] = alone
        finally:
            torch.set_num_threads(threads)
            library.choice.cache_clear()
    first = next(iter(found.values()))
    assert all(other == first for other in found.values())
