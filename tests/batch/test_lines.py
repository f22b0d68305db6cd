"""What a line may be, and what is said of one that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.batches import request

from ppinfer.batch import lines
from ppinfer.batch.lines import custom_id_of, one_line, parse, read_lines
from ppinfer.errors import BatchError
from ppinfer.server.errors import ApiError


def test_a_request() -> None:
    asked = parse(json.dumps(request("a")).encode())
    assert (asked.custom_id, asked.url) == ("a", "/v1/completions")
    assert json.loads(asked.body) == {"prompt": "a", "max_tokens": 4}
    plain = request("a", body={"prompt": "x", "stream": False, "n": None})
    assert parse(json.dumps(plain).encode()).body


@pytest.mark.parametrize(
    ("line", "custom_id", "code", "words"),
    [
        (b"{", None, None, "The line is not valid JSON."),
        (b"[]", None, None, "The line must be an object, not a list."),
        (b"\xff", None, None, "not valid JSON"),
        (b"[" * 10**5, None, None, "The line must be an object"),
        (b'{"body": ' * 10**5, None, None, "not valid JSON"),
        ({"method": None}, "a", None, "method must be a string, not null."),
        (b'{"custom_id": 5}', None, None, "custom_id must be a string"),
        ({"method": "GET"}, "a", None, "method must be POST."),
        ({"url": "/v1/embeddings"}, "a", None, "url must be one of /v1/chat/completions"),
        ({"priority": 1}, "a", "unknown_parameter", "priority is not a known field."),
        ({"body": 5}, "a", None, "The body must be an object"),
        ({"body": {"stream": True}}, "a", "unsupported_parameter", "stream must not be true"),
    ],
)
def test_what_is_none(line: Any, custom_id: str | None, code: str | None, words: str) -> None:
    if isinstance(line, dict):
        line = json.dumps(request("a", **line)).encode()
    with pytest.raises(ApiError) as caught:
        parse(line)
    assert words in caught.value.message
    assert caught.value.code == code
    assert custom_id_of(line) == custom_id


def test_a_field_that_is_missing() -> None:
    for name in ("custom_id", "method", "url", "body"):
        line = request("a")
        del line[name]
        with pytest.raises(ApiError) as caught:
            parse(json.dumps(line).encode())
        assert (caught.value.message, caught.value.code) == (
            f"{name} is missing.", "missing_parameter",
        )  # fmt: skip


def test_lines_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank ones have no number, one that is too long is passed over, the last needs no end."""
    monkeypatch.setattr(lines, "_LONGEST_LINE", 40)
    monkeypatch.setattr(lines, "_READ_BYTES", 16)
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\n  \n" + b"x" * 100 + b"\n three \n" + b"y" * 39)
    assert list(read_lines(file)) == [(1, b"one"), (2, None), (3, b"three"), (4, b"y" * 39)]
    with pytest.raises(ApiError, match="longer than 40 bytes"):
        parse(None)
    assert custom_id_of(None) is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="cannot be read: No such file"):
        list(read_lines(tmp_path / "none"))
    with pytest.raises(BatchError, match="cannot be read: Is a directory"):
        list(read_lines(tmp_path))


def test_answers_become_one_line() -> None:
    assert bytes(one_line(b'{\n  "a": [1.50, "\\n"]\n}\n')) == b'{"a":[1.50,"\\n"]}'
    assert bytes(one_line(b"<html>\n\xff")) == '"<html>\\n\ufffd"'.encode()
