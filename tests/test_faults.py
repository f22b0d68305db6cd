"""What a user gets wrong ends in one clear sentence, a non-zero exit, and nothing left running."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_model, save_model
from support.processes import Finished, run_cli, run_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers in several shards, with a tokenizer of the letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    model = make_model("llama", num_hidden_layers=4, max_position_embeddings=64)
    save_model(model, folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    vocabulary = {chr(ord("a") + i): i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def fails(done: Finished, *words: str) -> None:
    assert done.status == 1, done
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("ppinfer: error: ")
    for word in words:
        assert word in lines[0]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def remove_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def truncate(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def corrupt_header(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(struct.pack("<Q", 1 << 60) + shard.read_bytes()[8:])


def leave_folder(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../outside.safetensors"
    path.write_text(json.dumps(index))


BROKEN_CHECKPOINTS: list[tuple[Callable[[Path], None], list[str]]] = [
    (remove_shard, ["lacks", ".safetensors"]),
    (truncate, [".safetensors"]),
    (corrupt_header, [".safetensors"]),
    (leave_folder, ["leaves the folder"]),
    (lambda folder: edit_config(folder, intermediate_size=72), ["shape", "config"]),
    (lambda folder: edit_config(folder, num_hidden_layers=5), ["lacks model.layers.4"]),
    (
        lambda folder: edit_config(folder, architectures=["MambaForCausalLM"]),
        ["MambaForCausalLM", "LlamaForCausalLM, MistralForCausalLM"],
    ),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN_CHECKPOINTS)
def test_broken_checkpoints(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    fails(run_cli("generate", str(folder), "abc", "-pp", "2"), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pp-size", "5"], ["5 stages", "4 layers"]),
        (["--pp-size", "2", "--partition", "2,3"], ["[2, 3] has 5 layers", "4"]),
        (["--pp-size", "2", "--partition", "2,1,1"], ["names 3 stages"]),
        (["--dtype", "int4"], ["dtype", "int4", "bf16"]),
        (["--temperature", "nan"], ["temperature"]),
        (["--temperature", "-1"], ["temperature must be at least 0"]),
        (["--top-p", "1.5"], ["top_p"]),
        (["--kv-cache-memory", "1000"], ["1,000 bytes", "kv_cache_memory"]),
        (["--kv-cache-memory", "40000", "--max-tokens", "60"], ["KV cache blocks"]),
        (["--max-model-len", "3"], ["3 tokens", "context holds 3"]),
        (["--max-model-len", "100"], ["max_model_len is 100", "64"]),
        (["--device", "cuda"], ["cuda", "GPU"]),
    ],
)
def test_settings_that_cannot_be(checkpoint: Path, arguments: list[str], words: list[str]) -> None:
    fails(run_cli("generate", str(checkpoint), "abc", *arguments), *words)


def test_a_folder_that_is_not_there() -> None:
    fails(run_cli("generate", "/no/such/folder", "abc"), "/no/such/folder")


def test_a_prompt_longer_than_the_context(checkpoint: Path) -> None:
    fails(run_cli("generate", str(checkpoint), "a" * 70), "70 tokens", "64")


PROGRAM = """
import sys
from ppinfer import PPInferEngine, PPInferError, SamplingParams
try:
    with PPInferEngine(sys.argv[1], pp_size=2) as engine:
        {body}
except PPInferError as error:
    sys.exit(f"ppinfer: error: {{error}}")
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("engine.generate([[1, 97]])", ["Token id 97", "97 tokens (0 to 96)"]),
        ("engine.generate([[1, -1]])", ["Token id -1"]),
        ("engine.generate([[1], []])", ["empty"]),
        ("engine.generate([[1.5]])", ["token ids", "float"]),
        ("engine.generate(3)", ["int"]),
        ("engine.generate([[1]], [SamplingParams()] * 2)", ["2 SamplingParams", "1 prompts"]),
        ("engine.generate([[1]], SamplingParams(top_k=-5))", ["top_k must be at least 0"]),
        ("engine.inference([{'input_ids': [[1] * 60]}])", ["60 tokens", "64 including 32 new"]),
        ("engine.inference({'input_ids': [[1]]})", ["[inputs]"]),
        ("engine.close(); engine.generate([[1]])", ["closed"]),
    ],
)
def test_requests_that_cannot_be(checkpoint: Path, body: str, words: list[str]) -> None:
    fails(run_python(PROGRAM.format(body=body), str(checkpoint)), *words)


KILL = """
import os, signal, sys
from pathlib import Path
from ppinfer import PPInferEngine, PPInferError, SamplingParams
from ppinfer.engine import supervisor
from ppinfer.launch import process

supervisor._BLAME_SECONDS = process._EXIT_SECONDS = 30  # a busy machine ends a process slowly

def stages():
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and "ppinfer.stage.worker" in words:
                found[int(words[words.index("--stage") + 1])] = int(entry.name)
    return found

def kill(number):
    os.kill(stages()[number], signal.SIGKILL)

def while_loading(event, done, total):
    if event == "load weights" and done == 0:
        kill(1)

killed = False
try:
    if sys.argv[2] == "load":
        PPInferEngine(sys.argv[1], pp_size=2, progress=while_loading)
    engine = PPInferEngine(sys.argv[1], pp_size=3)
    while True:
        for delta in engine.stream([[1, 2]] * 4, SamplingParams(max_tokens=60, ignore_eos=True)):
            if not killed:
                killed = True
                kill(int(sys.argv[2]))
except PPInferError as error:
    sys.exit(f"ppinfer: error: {error}")
"""


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("load", ["Stage 1", "died while", "SIGKILL"]),
        ("0", ["Stage 0", "died while running", "SIGKILL"]),
        ("1", ["Stage 1", "died while running", "SIGKILL"]),
        ("2", ["Stage 2", "died while running", "SIGKILL"]),
    ],
)
def test_a_stage_that_dies_is_named(checkpoint: Path, when: str, words: list[str]) -> None:
    fails(run_python(KILL, str(checkpoint), when), *words)
