"""The program as a whole: its options, its speed to help, and commands that need no engine."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from support.fake_engine import run

from ppinfer.cli.options import attribute_help, engine_options, make_params, sampling_options
from ppinfer.config import EngineConfig, settings_help
from ppinfer.errors import RequestError
from ppinfer.grammar import Grammar
from ppinfer.sampling import SamplingParams
from ppinfer.version import __version__

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
}


class TestOptions:
    def test_every_setting_is_an_option_with_its_default_and_help(self) -> None:
        group = engine_options()
        assert set(group.types) == {item.name for item in fields(EngineConfig)} - {"new_length"}
        for item in fields(EngineConfig):
            if item.name in group.types:
                assert group.defaults[item.name] == item.default
                assert group.help[item.name] == settings_help()[item.name]

    def test_every_sampling_parameter_is_an_option(self) -> None:
        group = sampling_options()
        for item in msgspec.structs.fields(SamplingParams):
            assert group.defaults[item.name] == (item.default or type(group.defaults[item.name])())
            assert group.help[item.name].endswith(".")
            hint = group.types[item.name]
            kinds = set(get_args(hint) or (hint,)) - {type(None)}
            assert kinds <= {str, int, float, bool}, f"{item.name} can be written as {hint}"

    def test_a_grammar_is_written_with_its_kind(self, tmp_path: Path) -> None:
        schema = tmp_path / "schema.json"
        schema.write_text('{"type": "integer"}')
        lark = tmp_path / "grammar.lark"
        lark.write_text('start: "yes"')
        listed, long = tmp_path / "list.json", tmp_path / "long.lark"
        listed.write_text("[]")
        long.write_text("a" * 200_000)
        for written, grammar in {
            "json": Grammar.json_object(),
            "regex:a:b+": Grammar.regex("a:b+"),
            f"schema:{schema}": Grammar.json_schema({"type": "integer"}),
            f"lark:{lark}": Grammar.lark('start: "yes"'),
        }.items():
            assert make_params({"grammar": written}).grammar == grammar
        for written, why in {
            "yaml": "json, regex:PATTERN, schema:FILE or lark:FILE",
            "json:x": "json, regex:PATTERN, schema:FILE or lark:FILE",
            f"schema:{tmp_path / 'none'}": "cannot be read: No such file",
            f"schema:{lark}": "not a file of JSON",
            f"schema:{listed}": "A JSON schema must be an object, not list",
            f"lark:{long}": "must not be longer",
            "regex:" + "a" * 200_000: "must not be longer",
        }.items():
            with pytest.raises(RequestError, match=why):
                make_params({"grammar": written})

    def test_biases_are_written_with_their_tokens(self) -> None:
        assert make_params({"logit_bias": ["5=-1.5", "7=2"]}).logit_bias == {5: -1.5, 7: 2.0}
        with pytest.raises(RequestError, match="ID=BIAS"):
            make_params({"logit_bias": ["5"]})

    def test_help_from_a_docstring(self) -> None:
        class Documented:
            """About it.

            Attributes:
                first: one line.
                second: two
                    ``lines``.

            Raises:
                third: no attribute.
            """

            first: int
            second: int
            third: int

        assert attribute_help(Documented) == {
            "first": "One line.",
            "second": "Two lines.",
            "third": "",
        }

    def test_help_of_commands(self) -> None:
        for command in ("generate", "chat", "serve", "inspect", "doctor"):
            assert run(command, "--help").exit_code == 0
        assert run("--version").stdout == f"ppinfer {__version__}\n"
        assert run("dance").exit_code == 2


class TestProgram:
    def test_help_is_fast_and_imports_little(self) -> None:
        heavy = ["torch", "numpy", "jinja2", "tokenizers", "huggingface_hub", "transformers"]
        heavy += ["uvicorn", "asyncio"]
        code = (
            "import sys, ppinfer.cli\n"
            "try: ppinfer.cli.main()\n"
            f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("[]\n")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # 0.3 s

    def test_broken_pipe_is_quiet(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        command = f"{sys.executable} -c 'from ppinfer.cli import main; main()' inspect {tmp_path}"
        done = subprocess.run(
            ["bash", "-c", f"{command} --load-format dummy | true; exit ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.returncode in (0, 1, 141)  # rich has its own way to end


class TestInspect:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        return tmp_path

    def test_json(self, folder: Path) -> None:
        result = run("inspect", str(folder), "-pp", "2", "--load-format", "dummy", "--json")
        found = json.loads(result.stdout)
        assert found["num_layers"] == 5
        assert (found["dtype"], found["pp_size"]) == ("bf16", 2)
        stages = found["stages"]
        assert [stage["first_layer"] for stage in stages] == [0, stages[0]["last_layer"]]
        assert stages[1]["last_layer"] == 5
        held = sum(stage["parameters"] for stage in stages)
        assert held == found["parameters"] + 1000 * 64  # tied, and held by both
        assert stages[0]["weight_bytes"] == 2 * stages[0]["parameters"]
        assert sum(stage["kv_bytes_per_token"] for stage in stages) == 2 * 5 * 32 * 2

    def test_table(self, folder: Path) -> None:
        result = run(
            *("inspect", str(folder), "-pp", "2", "--load-format", "dummy"),
            *("--partition", "4,1", "--dtype", "fp32"),
        )
        assert result.exit_code == 0
        assert "0-3" in result.stdout
        assert "4-4" in result.stdout
        assert "are held twice" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-pp", "6"), "6 stages are more than the model's 5 layers"),
            (("-pp", "2", "--partition", "1,1"), "has 2 layers, but the model has 5"),
        ],
    )
    def test_errors(self, folder: Path, arguments: tuple[str, ...], message: str) -> None:
        result = run("inspect", str(folder), "--load-format", "dummy", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        missing = run("inspect", str(folder / "none"))
        assert missing.stderr.startswith("ppinfer: error: There is no such folder")


class TestDoctor:
    def test_json(self) -> None:
        result = run("doctor", "--json")
        found = json.loads(result.stdout)
        assert found["versions"]["ppinfer"] == __version__
        assert found["processor"]["usable cores"] >= 1
        assert "cpu" in found["devices"]
        assert found["row_invariance"]["cpu float32"] is True
        assert all(note.endswith(".") for note in found["slow"])
        assert result.exit_code == (1 if found["problems"] else 0)

    def test_table(self) -> None:
        result = run("doctor")
        for word in ("Versions", "torch", "Row invariance", "gloo"):
            assert word in result.stdout

    def test_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ppinfer.kernels.native import library

        def told() -> tuple[dict[str, Any], str]:
            library.choice.cache_clear()
            found = json.loads(run("doctor", "--json").stdout)
            return found["kernels"], " ".join(found["slow"] + found["problems"])

        monkeypatch.setenv(library.VARIABLE, "torch")
        kernels, notes = told()
        assert kernels["path"] == "torch"
        assert "PPINFER_KERNELS asks for it." in notes
        monkeypatch.setenv(library.VARIABLE, "quick")
        assert "it may be one of" in told()[1]
        monkeypatch.delenv(library.VARIABLE)
        kernels, notes = told()
        assert (kernels["path"] == "torch") == ("plain PyTorch" in notes)
        assert (kernels["path"] == "torch") == (kernels["library"] is None)

    def test_problems_make_it_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ppinfer.cli import machine

        monkeypatch.setattr(machine, "_PACKAGES", ("torch", "no-such-package"))
        result = run("doctor")
        assert result.exit_code == 1
        assert "The package no-such-package is missing" in result.stdout

    def test_inexact_rows_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ppinfer.cli import row_check

        monkeypatch.setattr(row_check, "rows_are_exact", lambda *_: False)
        result = run("doctor")
        assert result.exit_code == 0
        assert "changes with its batch" in " ".join(result.stdout.split())
