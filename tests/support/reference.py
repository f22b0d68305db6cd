"""The demo model in ``transformers``: what the pipeline's tokens are held against.

Its greedy tokens for every prompt are kept in ``exactness/reference_tokens.json``, because they
take minutes, and beside them how likely it finds the answers of a multiple-choice task; tests
compute some of either anew. ``python tests/support/reference.py`` writes both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support import choices
from support.choices import Likelihood
from support.demo_prompts import PROMPTS

from ppinfer.engine.tokenizer import Tokenizer
from ppinfer.weights.checkpoint import open_checkpoint
from ppinfer.weights.resolve import resolve_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
NEW_TOKENS = 48
FOLDER = Path(__file__).parents[1] / "exactness"
STORED = FOLDER / "reference_tokens.json"
STORED_LIKELIHOODS = FOLDER / "reference_likelihoods.json"


def stored_tokens() -> list[list[int]]:
    """What ``greedy`` gave for every prompt."""
    tokens: list[list[int]] = json.loads(STORED.read_text())
    return tokens


def stored_likelihoods() -> list[Likelihood]:
    """What ``likelihoods`` gave for every choice."""
    return [Likelihood(*row) for row in json.loads(STORED_LIKELIHOODS.read_text())]


@lru_cache(maxsize=1)
def demo_reference() -> Any:
    """The demo's GGUF file as a fp32 model of ``transformers``."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = resolve_model("demo")
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@lru_cache(maxsize=1)
def demo_tokenizer() -> Tokenizer:
    metadata = open_checkpoint(resolve_model("demo")).metadata
    assert metadata is not None
    return Tokenizer.from_gguf(metadata)


@lru_cache(maxsize=1)
def demo_prompt_ids() -> list[list[int]]:
    """Token ids of every prompt in ``demo_prompts``."""
    tokenizer = demo_tokenizer()
    return [tokenizer.encode_prompt(prompt)[1] for prompt in PROMPTS]


def greedy(prompts: Sequence[Sequence[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """``transformers``' own greedy tokens, one prompt at a time, past any end-of-sequence."""
    import torch

    model = demo_reference()
    outputs = []
    for ids in prompts:
        inputs = torch.tensor([list(ids)])
        full = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=0,
        )
        outputs.append(full[0, len(ids) :].tolist())
    return outputs


def follows(prompt: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """What ``transformers`` chooses after the prompt, and after it with the first 1, 2, … of these
    tokens. Greedy tokens are those that follow themselves; this takes one step for all of them."""
    import torch

    inputs = torch.tensor([[*prompt, *tokens[:-1]]])
    with torch.inference_mode():
        logits = demo_reference()(inputs, logits_to_keep=len(tokens)).logits[0]
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    return chosen


def likelihoods(texts: Sequence[tuple[str, str]]) -> list[Likelihood]:
    """Of each second text after the first, by ``transformers``."""
    import torch

    encode = demo_tokenizer().encode
    found = []
    for context, continuation in texts:
        ids, begin = encode(context + continuation), len(encode(context))
        with torch.inference_mode():
            logits = demo_reference()(torch.tensor([ids])).logits[0, begin - 1 : -1].double()
        chosen = torch.tensor(ids[begin:])
        logprobs = torch.log_softmax(logits, dim=-1).gather(1, chosen[:, None])
        is_greedy = bool((logits.argmax(dim=-1) == chosen).all())
        found.append(Likelihood(float(logprobs.sum()), is_greedy))
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(row) for row in likelihoods(choices.texts()))
    STORED_LIKELIHOODS.write_text(f"[\n{lines}\n]\n")
    rows = ",\n".join(json.dumps(row) for row in greedy(demo_prompt_ids()))
    STORED.write_text(f"[\n{rows}\n]\n")
