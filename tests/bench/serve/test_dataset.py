"""Files of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppinfer.bench.serve.dataset import read_dataset
from ppinfer.bench.serve.workload import Entry
from ppinfer.errors import ConfigError

HELLO = [{"role": "user", "content": "hello"}]


def lines(path: Path, *values: Any) -> Path:
    path.write_text("\n\n".join(json.dumps(value) for value in values), encoding="utf-8")
    return path


def test_json_lines(tmp_path: Path) -> None:
    found = read_dataset(
        lines(
            tmp_path / "a.jsonl",
            {"prompt": "x", "max_tokens": 3},
            {"messages": [*HELLO, {"role": "assistant", "content": "hi"}]},
            {"custom_id": "1", "body": {"messages": HELLO, "max_completion_tokens": 4}},
        )
    )
    assert found == [Entry("x", 3), Entry(HELLO, None), Entry(HELLO, 4)]


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "hello"},
        {"from": "gpt", "value": "hi"},
        {"from": "human", "value": "more"},
        {"from": "gpt", "value": "no"},
    ]
    path = tmp_path / "a.json"
    silent = {"conversations": turns[1:2]}
    path.write_text(json.dumps([{"id": "a", "conversations": turns}, silent]), encoding="utf-8")
    (entry,) = read_dataset(path)
    assert isinstance(entry.prompt, list)
    assert [turn["role"] for turn in entry.prompt] == ["user", "assistant", "user"]
    assert entry.prompt[-1]["content"] == "more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompts"),
        ("[]", "has no prompts"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a"}\n{', "line 2 is not JSON"),
        ("[1]", "entry 1: expected an object"),
        ('{"text": "a"}', "line 1: expected prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens must be"),
        ('{"conversations": [{"from": "human"}]}', "a turn needs"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_dataset(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_dataset(tmp_path / "nothing")
