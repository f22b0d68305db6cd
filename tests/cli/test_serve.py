"""The command: what it hands on, and what it refuses before anything is loaded."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import run

from ppinfer.server import run as server_run
from ppinfer.server.run import listen


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command would serve; nothing is."""
    calls: list[Any] = []

    async def serve(settings: Any, listener: Any, create: Any, ready: Any, told: Any) -> int:
        engine = await create()
        ready(engine)
        calls.append((settings, engine))
        return 0

    class Engine:
        @classmethod
        async def create(cls, model: str, *, progress: Any, **settings: Any) -> Any:
            made = types.SimpleNamespace(model=model, settings=settings)
            made.info = types.SimpleNamespace(notes=["a note"])
            return made

    module = types.ModuleType("ppinfer.engine.async_engine")
    module.AsyncPPInferEngine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppinfer.engine.async_engine", module)
    monkeypatch.setattr(server_run, "serve", serve)
    return calls


def test_what_is_handed_on(served: list[Any]) -> None:
    result = run(
        "serve", "some/hub-id", "--port", "0", "--pp-size", "2", "--api-key", "a", "--api-key", "b",
        "--max-queue", "5", "--max-body-size", "1MiB", "--shutdown-timeout", "2.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings, engine = served[0]
    assert (engine.model, engine.settings) == ("some/hub-id", {"pp_size": 2})
    assert (settings.model_names, settings.api_keys) == (("some/hub-id",), ("a", "b"))
    assert (settings.max_queue, settings.max_body_bytes) == (5, 2**20)
    assert settings.shutdown_timeout == 2.5
    assert "ppinfer: note: a note\n" in result.stderr
    assert "serving some/hub-id at http://127.0.0.1:" in result.stderr
    assert result.stdout == ""


def test_names(served: list[Any], tmp_path: Path) -> None:
    """The path of a model stays here."""
    run("serve", str(tmp_path), "--port", "0")
    run("serve", "x", "--port", "0", "--served-model-name", "a", "--served-model-name", "b")
    assert [settings.model_names for settings, _ in served] == [(tmp_path.name,), ("a", "b")]


def test_a_key_from_the_environment(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPINFER_API_KEY", "secret")
    run("serve", "x", "--port", "0")
    assert served[0][0].api_keys == ("secret",)


def test_refused(served: list[Any]) -> None:
    with listen("127.0.0.1", 0) as listener:
        result = run("serve", "x", "--port", str(listener.getsockname()[1]))
    assert (result.exit_code, served) == (1, [])
    assert "is in use" in result.stderr
    for arguments, words in [
        (("--api-key", ""), "must not be empty"), (("--max-body-size", "lots"), "memory size"),
        (("--dtype", "int4"), "dtype"), (("--host", "no-such-host.invalid"), "no-such-host"),
    ]:  # fmt: skip
        result = run("serve", "x", "--port", "0", *arguments)
        assert (result.exit_code in (1, 2), served) == (True, [])
        assert words in result.stderr
