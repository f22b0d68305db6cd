"""What is said where a GPU computes in plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ppinfer.kernels.gpu.device import why_slow
from ppinfer.kernels.native.library import VARIABLE

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")


def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    said = why_slow(torch.device("cuda", 0))
    assert said.startswith("Stages on a GPU compute in plain PyTorch, several times slower: ")
    assert said.endswith("this torch was built for something else.")


def test_not_to_who_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert why_slow(torch.device("cuda", 0)) == ""
