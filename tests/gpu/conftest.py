"""Tests of what runs on a GPU. Without one, kernels are interpreted, and the rest is skipped."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from ppinfer.launch import local

if not torch.cuda.is_available():
    # Read when Triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> torch.device:
    """A GPU, or the CPU with Triton's interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    pytest.importorskip("triton")
    return torch.device("cpu")


@pytest.fixture
def one_gpu_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stages compute on the first GPU, and NCCL takes each for a host of its own.

    NCCL refuses two ranks on one GPU of one host, and a stage otherwise takes the GPU of its index.
    """
    spawn = local.spawn_stage

    def on_first_gpu(stage: int, **settings: Any) -> Any:
        monkeypatch.setenv("NCCL_HOSTID", f"stage-{stage}")
        return spawn(stage, **(settings | {"local_index": 0}))

    for name, value in {
        "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local, "spawn_stage", on_first_gpu)
