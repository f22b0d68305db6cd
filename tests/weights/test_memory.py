"""While it loads, a stage's memory peaks at its own share and little more, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}
MB = 1 << 20
SCRIPT = """
import json, sys, torch

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

bare = status("VmRSS")
from ppinfer.models.decoder import StageModel
from ppinfer.models.policy import policy_for
from ppinfer.weights.checkpoint import open_checkpoint, stage_tensors

folder, load_format, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
checkpoint = open_checkpoint(folder, load_format)
policy = policy_for(checkpoint.architectures)
config = policy.model_config(checkpoint.config)
stage = StageModel(config, first, last, is_first=first == 0, is_last=last == config.num_layers,
                   dtype=torch.bfloat16, device=torch.device("cpu"))
stage.load(stage_tensors(checkpoint, policy, config, first, last))
print(json.dumps([bare, config.stage_parameters(first, last) * 2, stage.weight_bytes,
                  status("VmRSS"), status("VmHWM")]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 MB in two shards; zeros serve as well as anything."""
    from ppinfer.models.config import read_hf_config
    from ppinfer.models.policy import POLICIES, stage_shapes

    folder = tmp_path_factory.mktemp("big")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config, policy = read_hf_config(CONFIG), POLICIES["LlamaForCausalLM"]
    where: dict[str, str] = {}
    for shard, (first, last) in enumerate(((0, 3), (3, 6))):
        tensors = {
            policy.checkpoint_name(name): torch.zeros(shape, dtype=torch.bfloat16)
            for name, shape in stage_shapes(config, first, last).items()
        }
        save_file(tensors, folder / f"{shard}.safetensors")
        where |= dict.fromkeys(tensors, f"{shard}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 6), (2, 4)])
def test_peak_while_loading(folder: Path, first: int, last: int, load_format: str) -> None:
    arguments = [str(folder), load_format, str(first), str(last)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bare, share, counted, now, peak = json.loads(done.stdout)
    assert share <= counted < share * 1.01, "what is counted is what is there"
    assert now - bare < share + 40 * MB
    assert peak - bare < share + 60 * MB
    assert peak < share + 350 * MB
