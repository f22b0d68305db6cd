"""Greedy tokens of the demo model against ``transformers`` over a grid of settings.

    python tests/exactness/grid.py [--turns N] > docs/results/exactness.md

In one turn, every pipeline size meets every partition and transport, and each of those meets every
micro-batch size, while the chunk sizes rotate. After three turns everything has met everything.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.reference import NEW_TOKENS, demo_prompt_ids, stored_tokens

from ppinfer import PPInferEngine, SamplingParams
from ppinfer.version import __version__

SIZES = (1, 2, 3, 4)
MICRO_BATCH_SIZES = (1, 2, 3, 8)
CHUNKS = (7, 64, 512)
COMMS = ("p2p", "broadcast")
LOPSIDED = {1: (30,), 2: (3, 27), 3: (22, 1, 7), 4: (1, 2, 24, 3)}


def grid(turns: int) -> Iterator[dict[str, Any]]:
    combinations = [
        (size, cut, comm, rows)
        for size in SIZES
        for cut, comm in itertools.product(("even", "auto", LOPSIDED[size]), COMMS)
        if size > 1 or (cut, comm) == ("auto", "p2p")  # one stage has one cut and no link
        for rows in MICRO_BATCH_SIZES
    ]
    for turn in range(turns):
        for index, (size, cut, comm, rows) in enumerate(combinations):
            yield {
                "pp_size": size,
                "partition": cut,
                "comm": comm,
                "micro_batch_size": rows,
                "max_prefill_tokens": CHUNKS[(index + turn) % len(CHUNKS)],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1, choices=range(1, len(CHUNKS) + 1))
    turns = parser.parse_args().turns
    prompts = demo_prompt_ids()
    expected = stored_tokens()
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    import torch
    import transformers

    lengths = sorted(len(prompt) for prompt in prompts)
    print(
        "# Greedy tokens against transformers\n\n"
        f"Made by `python tests/exactness/grid.py --turns {turns}` with ppinfer "
        f"{__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, on {torch.get_num_threads()} cores.\n\n"
        f"Model: the demo (SmolLM2-135M-Instruct) in fp32. {len(prompts)} prompts of {lengths[0]} "
        f"to {lengths[-1]} tokens, {NEW_TOKENS} new tokens each, past any end of sequence; "
        "`generate` of transformers one prompt at a time, the pipeline all at once.\n\n"
        "| stages | layers | comm | micro-batch size | prefill chunk | rows that differ | s |\n"
        "|---|---|---|---|---|---|---|"
    )
    wrong = 0
    for settings in grid(turns):
        started = time.perf_counter()
        with PPInferEngine("demo", dtype="fp32", **settings) as engine:
            results = engine.generate(prompts, params)
            layers = "+".join(str(stage.num_layers) for stage in engine.report().stages)
        differing = sum(r.token_ids != expected[r.index] for r in results)
        wrong += differing
        cut = settings["partition"]
        name = cut if isinstance(cut, str) else "lopsided"
        print(
            f"| {settings['pp_size']} | {layers} ({name}) | {settings['comm']} | "
            f"{settings['micro_batch_size']} | {settings['max_prefill_tokens']} | {differing} of "
            f"{len(results)} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )
    print(f"\nRows that differ in all: {wrong}.")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
