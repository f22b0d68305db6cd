"""Folders of safetensors: what is read, and that every fault is one clear sentence."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import Chain, make_model, random_ids, reference_logits, save_model

from ppinfer.errors import CheckpointError, UnknownArchitectureError
from ppinfer.messages import StageTensors
from ppinfer.models.policy import policy_for
from ppinfer.weights.checkpoint import open_checkpoint, stage_tensors


def plan_stage(folder: Path, first: int = 0, last: int | None = None) -> StageTensors:
    checkpoint = open_checkpoint(folder)
    policy = policy_for(checkpoint.architectures)
    config = policy.model_config(checkpoint.config)
    return stage_tensors(checkpoint, policy, config, first, last or config.num_layers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_model("llama", num_hidden_layers=3), tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = save_model(make_model("llama", num_hidden_layers=3), tmp_path, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


# -------------------------------------------------------------------- what is read


def test_a_stage_gets_its_own_tensors_and_files(shards: Path) -> None:
    first, middle, last = (plan_stage(shards, i, i + 1) for i in range(3))
    assert {e.name.split(".")[0] for e in first.entries} == {"embed", "layers"}
    assert all(e.name.startswith("layers.1.") for e in middle.entries)
    assert {"final_norm.weight", "head.weight"} <= {e.name for e in last.entries}
    every = {path.name for path in shards.glob("*.safetensors")}
    for stage in (first, middle, last):
        assert {Path(file).name for file in stage.files} < every
        assert {entry.file for entry in stage.entries} == set(range(len(stage.files)))


def test_shards_give_the_same_logits(shards: Path, tmp_path: Path) -> None:
    ids = random_ids(20)
    model = make_model("llama", num_hidden_layers=3)
    got = Chain(shards, cuts=(1, 2)).run(ids)
    torch.testing.assert_close(got, reference_logits(model, ids), atol=1e-4, rtol=1e-4)


def test_stored_types_are_converted(tmp_path: Path) -> None:
    model = make_model("llama")
    ids = random_ids(20)
    for stored in (torch.bfloat16, torch.float16):
        folder = save_model(make_model("llama"), tmp_path / str(stored), stored)
        with torch.no_grad():
            for parameter, original in zip(
                model.parameters(), make_model("llama").parameters(), strict=True
            ):
                parameter.copy_(original.to(stored))
        expected = reference_logits(model, ids)
        torch.testing.assert_close(Chain(folder).run(ids), expected, atol=1e-4, rtol=1e-4)


def test_tied_head_comes_from_the_embedding(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", tie_word_embeddings=True), tmp_path)
    (head,) = (e for e in plan_stage(folder, 1).entries if e.name == "head.weight")
    (embed,) = (e for e in plan_stage(folder, 0, 1).entries if e.name == "embed.weight")
    assert head.offset == embed.offset


def test_harmless_left_overs(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", tie_word_embeddings=True), tmp_path)
    rewrite(
        folder,
        lambda tensors: (
            tensors
            | {
                "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5),
            }
        ),
    )
    plan_stage(folder)


def test_links_out_of_the_folder_are_how_the_hub_caches(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("..") / name)
    plan_stage(snapshot)


def test_ends_of_sequence_come_from_the_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_checkpoint(folder).config["eos_token_id"] == [7, 9]


# -------------------------------------------------------------------- faults


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def edit_json(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def edit_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def refuses(folder: Path, words: str) -> str:
    with pytest.raises(CheckpointError, match=words) as caught:
        plan_stage(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


UP = "model.layers.0.mlp.up_proj.weight"


def test_missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != UP})
    assert UP in refuses(folder, "lacks")


def test_left_over_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {"model.layers.0.extra": torch.ones(2)})
    refuses(folder, "has model.layers.0.extra, which Llama.* has no place for")


def test_more_layers_than_the_config_says(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=2)
    refuses(folder, "and 6 more tensors, which")


def test_shape_against_config(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=57)
    refuses(folder, re.escape("of shape (56, 40), but the config makes it (57, 40)"))


def test_type_that_cannot_be_read(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {UP: tensors[UP].to(torch.int8)})
    refuses(folder, f"stores {UP} as I8")


def test_unknown_type(folder: Path) -> None:
    edit_header(folder, lambda header: header[UP].update(dtype="F7"))
    refuses(folder, "'F7', which is not supported")


def test_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(folder, "is cut short")


@pytest.mark.parametrize("data", [b"", b"1234", struct.pack("<Q", 2**63) + bytes(50)])
def test_absurd_header_length(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    refuses(folder, "is not a complete safetensors file")


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"\xff\xfe", b"[" * 90000, b'{"a": ' + b"1" * 9999 + b"}", b"{} {}"]
)
def test_damaged_header(folder: Path, header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(data)
    refuses(folder, "has a damaged header")


def test_name_twice(folder: Path) -> None:
    item = '"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    header = f"{{{item}, {item}}}".encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refuses(folder, "'x' is there twice")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_offsets": [0, 2**60]}, "takes 8,960"),
        ({"data_offsets": [2**60, 2**60 + 8960]}, "is cut short"),
        ({"data_offsets": [-8960, 0]}, "damaged header entry"),
        ({"data_offsets": [0]}, "damaged header entry"),
        ({"data_offsets": "01"}, "damaged header entry"),
        ({"shape": [56, 41]}, "takes 9,184"),
        ({"shape": [2**40, 2**40]}, "takes"),
        ({"shape": None}, "damaged header entry"),
        ({"shape": [True, 2240]}, "damaged header entry"),
        ({"dtype": ["F32"]}, "damaged header entry|not supported"),
        ({"dtype": "F16"}, "takes 4,480"),
    ],
)
def test_header_entry_that_lies(folder: Path, change: dict[str, Any], words: str) -> None:
    edit_header(folder, lambda header: header[UP].update(change))
    refuses(folder, words)


def test_overlapping_tensors(folder: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        gate = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"]
        header[UP]["data_offsets"] = [gate[0] + 4, gate[1] + 4]

    edit_header(folder, overlap)
    refuses(folder, "overlapping tensors")


def test_missing_shard(shards: Path) -> None:
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refuses(shards, "lacks")


def index_of(folder: Path) -> tuple[Path, dict[str, str]]:
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())["weight_map"]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../b", "", "..", "a\\..\\b", "a\0b"]
)
def test_shard_outside_the_folder(shards: Path, name: str) -> None:
    path, where = index_of(shards)
    edit_json(path, weight_map=where | {UP: name})
    refuses(shards, "leaves the folder")


def test_index_that_names_an_absent_tensor(shards: Path) -> None:
    path, where = index_of(shards)
    edit_json(path, weight_map=where | {"model.ghost": next(iter(where.values()))})
    refuses(shards, "says model.ghost is in")


@pytest.mark.parametrize("where", [None, [], {"a": 1}])
def test_index_without_a_map(shards: Path, where: Any) -> None:
    edit_json(index_of(shards)[0], weight_map=where)
    refuses(shards, "no usable weight_map")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refuses(folder, r"has no config\.json")


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 90000, b"[]"])
def test_damaged_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    refuses(folder, "config.json (is no valid JSON|holds no JSON table)")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refuses(folder, "is a pickle.*save_pretrained")
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_checkpoint(folder / name)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuses(folder, "has neither model.safetensors nor")


def test_remote_code_is_never_run(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    edit_json(
        folder / "config.json",
        auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"},
        architectures=["EvilForCausalLM"],
    )
    with pytest.raises(UnknownArchitectureError, match="EvilForCausalLM"):
        plan_stage(folder)


def test_file_that_shrinks_after_the_header_was_read(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="ends inside tensor"):
        Chain(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be opened"):
        Chain(checkpoint)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    with pytest.raises(CheckpointError, match=r"neither a folder nor a \.gguf file"):
        open_checkpoint(tmp_path / "model.txt")
