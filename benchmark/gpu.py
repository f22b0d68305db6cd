"""One process on a GPU against Hugging Face: a Llama of 7 billion made-up parameters in bf16.

    python benchmark/gpu.py > gpu.md        2 minutes, and 40 GB of the GPU's memory

Both compute in one process after the other on the first GPU; a figure is the median of three runs,
prefill included. Hugging Face runs ``generate`` with its default attention (sdpa).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppinfer import PPInferEngine, SamplingParams
from ppinfer.bench.tables import Table, markdown, number

SHAPES = [(1, 512, 32), (1, 512, 128), (8, 512, 64), (32, 512, 64), (32, 128, 64)]
"""Sequences, tokens of a prompt, new tokens."""
RUNS = 3
LLAMA_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 32,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip


def prompts(count: int, length: int) -> list[list[int]]:
    return [[(i * 7919 + j * 31) % 30000 for j in range(length)] for i in range(count)]


def seconds(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def of_ppinfer(folder: Path) -> list[float]:
    with PPInferEngine(
        str(folder), load_format="dummy", device="cuda", dtype="bf16", max_num_seqs=32,
        prefix_caching=False,
    ) as engine:  # fmt: skip
        for note in engine.notes:
            print(note, file=sys.stderr)
        return [
            seconds(
                lambda: engine.generate(
                    prompts(count, length),  # noqa: B023
                    SamplingParams(max_tokens=new, ignore_eos=True),  # noqa: B023
                )
            )
            for count, length, new in SHAPES
        ]


def of_hugging_face() -> list[float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {name: value for name, value in LLAMA_7B.items() if name != "torch_dtype"}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    torch.set_default_dtype(torch.float32)

    def generate(count: int, length: int, new: int) -> None:
        ids = torch.tensor(prompts(count, length), device="cuda")
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        torch.cuda.synchronize()

    with torch.inference_mode():
        return [seconds(lambda: generate(*shape)) for shape in SHAPES]  # noqa: B023


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_7B))
        ours = of_ppinfer(Path(folder))
    theirs = of_hugging_face()
    table = Table(
        "Output tokens/s, Llama of 7 billion in bf16",
        ["batch x prompt x new", "ppinfer", "Hugging Face", "ratio"],
    )
    for (count, length, new), mine, other in zip(SHAPES, ours, theirs, strict=True):
        rates = [number(count * new / taken) for taken in (mine, other)]
        table.rows.append([f"{count}x{length}x{new}", *rates, f"{other / mine:.2f}x"])
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}\n")
    print(markdown([table]))


if __name__ == "__main__":
    main()
