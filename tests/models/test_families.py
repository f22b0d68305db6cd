"""Logits of every family equal those of transformers, on every partition and in every chunking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import Chain, make_model, random_ids, reference_logits, save_model

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "one layer": ("llama", {"num_hidden_layers": 1}, ()),
    "no groups, tied": (
        "llama",
        {"num_key_value_heads": 4, "num_hidden_layers": 5, "tie_word_embeddings": True},
        (2, 3),
    ),
    "groups of 3, wide heads": (
        "llama",
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "head_dim": 12},
        (1,),
    ),
    "groups of 4, one KV head": ("llama", {"num_key_value_heads": 1, "head_dim": 34}, ()),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}, (1,)),
    "nine layers on four stages": ("llama", {"num_hidden_layers": 9}, (1, 4, 8)),
    "llama 3 rope, factor 8": (
        "llama",
        {"rope_parameters": LLAMA3 | {"factor": 8.0, "rope_theta": 500000.0}},
        (),
    ),
    "llama 3 rope, factor 32": (
        "llama",
        {"rope_parameters": LLAMA3 | {"factor": 32.0, "rope_theta": 500000.0}},
        (),
    ),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}, ()),
    "yarn rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "head_dim": 32,
        },
        (),
    ),
    "mistral, short window": ("mistral", {"sliding_window": 11, "num_hidden_layers": 3}, (1, 2)),
    "mistral, no window": ("mistral", {"sliding_window": None}, ()),
    "mistral, window over a split": ("mistral", {"sliding_window": 140}, ()),
    "qwen 2": ("qwen2", {"num_hidden_layers": 7}, (2, 4, 6)),
    "qwen 2, upper layers windowed": (
        "qwen2",
        {
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
        },
        (3,),
    ),
    "qwen 3": ("qwen3", {"head_dim": 16, "num_hidden_layers": 3, "hidden_size": 44}, (1,)),
    "qwen 3, biases, tied": (
        "qwen3",
        {"head_dim": 14, "attention_bias": True, "tie_word_embeddings": True},
        (),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    family, settings, cuts = CASES[case]
    model = make_model(family, **settings)
    chain = Chain(save_model(model, tmp_path), cuts)
    assert len(chain.stages) == len(cuts) + 1
    ids = random_ids(150)
    expected = reference_logits(model, ids)
    assert expected.std() > 0.3, "the oracle's logits should say something"
    whole = chain.run(ids)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    # A chunked prompt and then token by token; equal bits, so the bound above holds for it too.
    assert torch.equal(chain.run(ids, [7, 16, 64, 1, 40] + [1] * 22), whole)


@pytest.mark.parametrize(
    ("layers", "stages"), [(n, k) for n in range(1, 10) for k in range(1, min(n, 4) + 1)]
)
def test_every_even_partition(
    layers: int, stages: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"{layers}-layers"
    if not folder.exists():
        save_model(make_model("llama", num_hidden_layers=layers, hidden_size=24), folder)
    ids = random_ids(20)
    cuts = [layers * i // stages for i in range(1, stages)]
    assert torch.equal(Chain(folder, cuts).run(ids), Chain(folder).run(ids))


def test_positions_far_out(tmp_path: Path) -> None:
    """The rotary table grows past its first thousand positions."""
    model = make_model("llama", max_position_embeddings=4096, num_hidden_layers=1)
    chain = Chain(save_model(model, tmp_path))
    ids = random_ids(1100)
    logits = chain.run(ids, [512, 512])
    torch.testing.assert_close(logits, reference_logits(model, ids), atol=1e-4, rtol=1e-4)
