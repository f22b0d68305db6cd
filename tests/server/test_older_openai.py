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
        capture_output=True, text=True, timeout=60, check=False,
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
