"""The last client of OpenAI's first major works unchanged, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import older_openai
from support.fake_async_engine import ANSWER, RunningServer, small_tokenizer

FOLDER = Path(sys.prefix) / "older-openai"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no older openai is installed")


def ask(server: RunningServer, kind: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, older_openai.__file__, server.url, kind],
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("version").startswith("1.")
    return found


def test_texts(server: RunningServer) -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(ANSWER)
    start = tokenizer.decode(ids[:4])
    assert ask(server, "texts") == {
        "models": ["small"],
        "chat": [ANSWER, "stop"],
        "usage": len(ids) + 1,
        "top": [2] * (len(ids) + 1),
        "streamed chat": [ANSWER, len(ids) + 1],
        "helper": ANSWER,
        "completions": [start, start],
        "offsets": [0, 3, 9, 15],
        "streamed completion": start,
        "error": ["temperature", "invalid_request_error"],
        "async": ANSWER,
        "at once": [ANSWER] * 8,
    }


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def test_calls(server: RunningServer) -> None:
    server.engine.info.max_model_len = 5000
    server.engine.answer = CALL
    called = ["get_weather", {"city": "Köln"}]
    assert ask(server, "calls") == {
        "call": called, "reason": "tool_calls", "streamed call": called,
    }  # fmt: skip
    last = server.engine.calls[-1]
    assert last.params.grammar is not None
    assert "<tool_response>\nrain" in small_tokenizer().decode(last.ids)


def test_schemas(server: RunningServer) -> None:
    server.engine.answer = '{"city": "Köln"}'
    assert ask(server, "schemas") == {"parsed": "Köln", "schema": {"city": "Köln"}}
    assert all(call.params.grammar is not None for call in server.engine.calls)
