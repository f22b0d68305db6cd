"""The output file: what it knows, and what it will not touch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import request, write_batch

from ppinfer.batch import journal as journal_module
from ppinfer.batch.journal import Journal, Numbers, digest
from ppinfer.batch.lines import Outcome
from ppinfer.batch.run import open_journal
from ppinfer.errors import BatchError


def outcome(custom_id: str | None) -> Outcome:
    return Outcome("", custom_id, None, None)


@given(st.permutations(range(1, 30)), st.integers(0, 29))
def test_numbers(order: list[int], count: int) -> None:
    numbers = Numbers()
    for number in order[:count]:
        numbers.add(number)
    assert [number for number in range(40) if number in numbers] == sorted(order[:count])
    assert numbers.count == count
    borders = sum(n in numbers and n - 1 not in numbers for n in range(40))
    assert numbers.num_stretches == borders


def test_what_was_written_is_known_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path) as first:
        for number, custom_id in ((3, "c"), (1, None), (12, "é\n")):
            first.write(number, outcome(custom_id))
    with Journal(path) as again:
        assert [n for n in range(20) if n in again.done] == [1, 3, 12]
        known = again.digest
        again.write(2, outcome("b"))
    assert known != 0
    assert path.read_text(encoding="utf-8").splitlines()[0] == (
        '{"id":"batch_req_3","custom_id":"c","response":null,"error":null}'
    )


def test_digests_tell_who_stands_where() -> None:
    for n in range(200):
        a, b = f"a{n}", f"b{n}"
        assert digest(1, a) + digest(2, b) != digest(1, b) + digest(2, a)
    assert digest(1, None) != digest(1, "None")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path):
        with pytest.raises(BatchError, match="Another run is writing"):
            Journal(path)
        code = "import sys; from ppinfer.batch.journal import Journal; Journal(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
        assert b"Another run is writing" in done.stderr
    Journal(path).close()


@pytest.mark.parametrize(
    "content",
    [
        b"my notes", b"{}\n", b'{"id":"batch_req_1"}\n', b'{"id":"x","custom_id":null}\n',
        b'{"id":"batch_req_0","custom_id":null}\n', b"[1]\n", b"\n", b"\0\0\0", b"\xff\n",
        b'{"id":"batch_req_1","custom_id":null}\n{"id":"batch_req_1","custom_id":null}\n',
        b'{"id":"batch_req_1","custom_id":null}\nnotes',
    ],
)  # fmt: skip
def test_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(BatchError, match="holds something else"):
        Journal(path)
    assert path.read_bytes() == content


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="cannot be opened: No such file"):
        Journal(tmp_path / "none" / "out.jsonl")
    with pytest.raises(BatchError, match="cannot be opened: Is a directory"):
        Journal(tmp_path)
    source = write_batch(tmp_path / "in.jsonl", [request("a")])
    os.link(source, tmp_path / "same.jsonl")
    with pytest.raises(BatchError, match="cannot be the file that it reads"):
        open_journal(source, tmp_path / "same.jsonl")
    with pytest.raises(BatchError, match="cannot be read"):
        open_journal(tmp_path / "none", tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    write = os.write

    def some(fd: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return write(fd, data[:30])

    with Journal(path) as journal:
        journal.write(1, outcome("a"))
        monkeypatch.setattr(journal_module.os, "write", some)
        with pytest.raises(BatchError, match="cannot be written: No space left on device"):
            journal.write(2, outcome("b"))
        monkeypatch.setattr(journal_module.os, "write", write)
        assert 2 not in journal.done
        journal.write(3, outcome("c"))
    assert path.read_bytes().count(b"\n") == 2
    Journal(path).close()


def test_it_is_forced_to_disk_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(journal_module.os, "fsync", synced.append)
    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", 60)
    journal = Journal(tmp_path / "out.jsonl")
    for number in range(1, 100):
        journal.write(number, outcome("a"))
    assert not synced
    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", -1)
    journal.write(100, outcome("a"))
    assert len(synced) == 1
    journal.close()
    assert len(synced) == 2
