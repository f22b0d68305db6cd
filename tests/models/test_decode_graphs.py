"""That a model on a GPU hands its decode steps over, on any machine."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import CPU
from support.small_llama import small_llama

from ppinfer.kernels.attention import AttentionBatch
from ppinfer.messages import StageTensors
from ppinfer.models import decoder
from ppinfer.models.decoder import StageModel


class FakeGraphs:
    """Runs what it is given, and remembers how often."""

    def __init__(self, rotary: Any) -> None:
        self.runs = 0

    def run(self, x: torch.Tensor, batch: AttentionBatch, forward: Any) -> torch.Tensor | None:
        self.runs += 1
        return None if batch.num_tokens > 1 else torch.zeros(1, 48)


def test_graphs_of_a_cache_and_what_they_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from ppinfer.kernels.gpu import decode_graph

    config = small_llama()
    model = StageModel(config, 0, 5, is_first=True, is_last=True, dtype=torch.float32, device=CPU)
    model.load(StageTensors((), (), dummy=True))
    shape = (4, config.num_kv_heads, 16, config.head_dim)
    cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(5)]

    def step(model: StageModel, tokens: int) -> torch.Tensor:
        batch = AttentionBatch.build([0], [tokens], [[1, 2]], 16, config=config, device=CPU)
        return model.forward(torch.arange(tokens), batch, cache)

    plain = step(model, 3)
    monkeypatch.setattr(decoder, "gpu", SimpleNamespace(usable=lambda device: True))
    monkeypatch.setattr(decode_graph, "DecodeGraphs", FakeGraphs)
    assert torch.equal(step(model, 1), torch.zeros(1, 48)), "what was recorded"
    assert torch.equal(step(model, 3), plain), "what cannot be recorded"
    assert model._graphs is not None
    graphs = model._graphs[1]
    assert graphs.runs == 2, "the same graphs for the same cache"
    found = weakref.ref(model)
    monkeypatch.undo()
    gc.disable()
    try:
        del model
        assert found() is None, "a model must not wait for a collector to free its memory"
    finally:
        gc.enable()
