"""What loading costs: each stage's tensors, its peak resident memory, and the time of each part.

    python benchmark/loading.py [--layers 20] > docs/results/loading.md

Makes a sharded checkpoint of about a billion parameters in bf16 (20 layers of hidden size 2048) in
a temporary folder, and loads it over 2 and 4 stages; then the demo from a cold start over 2 stages.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ppinfer import PPInferEngine
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy, stage_shapes
from ppinfer.version import __version__

LAYERS_A_SHARD = 4
BARE = "import torch; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
FIRST_TOKEN = """
import json, time
started = time.time()
from ppinfer import PPInferEngine, SamplingParams
imported = time.time()
with PPInferEngine("demo", pp_size=2) as engine:
    stands = time.time()
    next(engine.stream("Hello", SamplingParams(max_tokens=2)))
    first = time.time()
    parts = {"import ppinfer": imported - started} | engine.startup_seconds
    print(json.dumps(parts | {"first token": first - stands, "script": first - started}))
"""


def write_checkpoint(folder: Path, layers: int) -> None:
    """Random bf16 weights, ``LAYERS_A_SHARD`` layers a file, never more than one file in memory."""
    hf = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_hidden_layers": layers,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(hf))
    policy = LlamaForCausalLMPipelinePolicy()
    shapes = stage_shapes(policy.model_config(hf), 0, layers)
    where: dict[str, str] = {}
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for canonical, shape in shapes.items():
        parts = canonical.split(".")
        number = int(parts[1]) // LAYERS_A_SHARD if parts[0] == "layers" else "outer"
        file, name = f"model-{number}.safetensors", policy.checkpoint_name(canonical)
        shards.setdefault(file, {})[name] = shape
        where[name] = file
    for file, members in shards.items():
        tensors = {n: torch.randn(s, dtype=torch.bfloat16) * 0.02 for n, s in members.items()}
        save_file(tensors, folder / file)
    index = {"weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=20)
    layers = parser.parse_args().layers
    bare = int(subprocess.check_output([sys.executable, "-c", BARE])) * 1024
    print(
        "# Loading\n\n"
        f"Made by `python benchmark/loading.py` with ppinfer {__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} "
        f"cores, no GPU. A process that only imports torch peaks at {bare / 1e6:.0f} MB.\n\n"
        "## A sharded checkpoint in bf16\n\n"
        "Peak is the highest resident memory of the stage process (VmHWM) over the whole load, "
        "reordering included; over is peak less the stage's share.\n\n"
        "| stages | stage | layers | share, MB | peak, MB | over, MB | load, s |\n"
        "|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, layers)
        for stages in (2, 4):
            with PPInferEngine(folder, pp_size=stages, kv_cache_memory="64MB") as engine:
                report = engine.report().stages
                for stage, loaded in zip(report, engine.loaded, strict=True):
                    share, peak = stage.weight_bytes, loaded.peak_rss_bytes
                    print(
                        f"| {stages} | {stage.stage} | {stage.num_layers} | {share / 1e6:.0f} | "
                        f"{peak / 1e6:.0f} | {(peak - share) / 1e6:.0f} | "
                        f"{loaded.load_seconds:.1f} |"
                    )
    print("\n## The demo, cold start to first token, two stages\n")
    runs = []
    for _ in range(5):
        started = time.time()
        out = subprocess.check_output([sys.executable, "-c", FIRST_TOKEN])
        runs.append(json.loads(out) | {"whole process": time.time() - started})
    print("| part | median of 5, s |\n|---|---|")
    for part in runs[0]:
        print(f"| {part} | {sorted(run[part] for run in runs)[2]:.2f} |")


if __name__ == "__main__":
    main()
