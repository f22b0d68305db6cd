"""Building and choosing native kernels: what is cached, what is refused, what is said."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppinfer.errors import ConfigError
from ppinfer.kernels.native import build, library, paths

PLAIN = paths.PATHS[-1]
CPU = torch.device("cpu")

# Stands in for the compiler: answers --version, counts libraries, and writes what it is told to.
FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake {version}"; exit 0; fi
case " $* " in *" -c "*) ;; *) echo linked >> "{log}" ;; esac
for last; do :; done
sleep {seconds}
echo library > "$last"
exit {code}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no choice made yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library.choice.cache_clear()
    yield tmp_path / "cache" / "ppinfer" / "kernels"
    library.choice.cache_clear()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    return FakeCompiler(tmp_path, monkeypatch)


class FakeCompiler:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log, self._folder = tmp_path / "log", tmp_path / "bin"
        self._folder.mkdir()
        monkeypatch.setenv("PATH", f"{self._folder}:/bin:/usr/bin")
        self.write()

    def write(self, version: str = "1", code: int = 0, seconds: float = 0) -> None:
        file = self._folder / "c++"
        text = FAKE.format(version=version, log=self._log, code=code, seconds=seconds)
        file.write_text(text)
        file.chmod(0o755)

    @property
    def calls(self) -> int:
        """How many libraries it made."""
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0


def test_compiled_once(fake: FakeCompiler, folder: Path) -> None:
    file = build.library_file(PLAIN)
    assert file.parent == folder
    assert file.read_text() == "library\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert build.library_file(PLAIN) == file
    assert fake.calls == 1
    assert sorted(p.suffix for p in folder.iterdir()) == [".lock", ".so"]


def test_another_compiler_path_or_processor_is_another_library(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {build.library_file(PLAIN), build.library_file(paths.PATHS[0])}
    fake.write(version="2")
    files.add(build.library_file(PLAIN))
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"other"}))
    files.add(build.library_file(PLAIN))
    assert len(files) == fake.calls == 4


def test_libraries_that_nobody_used_for_long_are_removed(fake: FakeCompiler, folder: Path) -> None:
    old, recent = build.library_file(PLAIN), build.library_file(paths.PATHS[0])
    long_ago = time.time() - 31 * 86_400
    for file in (old, recent):
        os.utime(file, (long_ago, long_ago))
    assert build.library_file(paths.PATHS[0]) == recent  # and is in use again
    fake.write(version="2")
    new = [build.library_file(PLAIN), build.library_file(paths.PATHS[0])]
    assert sorted(folder.glob("*.so")) == sorted([*new, recent])


def test_two_processes_compile_once(fake: FakeCompiler) -> None:
    fake.write(seconds=0.5)
    code = "from ppinfer.kernels.native import build, paths; build.library_file(paths.PATHS[-1])"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert fake.calls == 1


def test_a_failing_compiler_is_told_and_nothing_is_left(fake: FakeCompiler, folder: Path) -> None:
    fake.write(code=1)
    choice = library.choice()
    assert choice.kernels is None
    assert "could not compile" in str(library.fallback_reason())
    assert library.active_for(CPU, torch.float32, 64) is None
    assert not list(folder.glob("*.so"))
    assert not list(folder.glob(".*.so"))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.active() is None
    assert "there is no C++ compiler" in str(library.fallback_reason())


def test_a_library_that_does_not_load_is_told(fake: FakeCompiler) -> None:
    assert library.active() is None
    assert "could not be loaded" in str(library.fallback_reason())


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_refused(
    fake: FakeCompiler, folder: Path, mode: int
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(build.BuildError, match="can be written by others"):
        build.library_file(PLAIN)
    assert fake.calls == 0


def test_a_library_that_others_may_write_to_is_refused(fake: FakeCompiler) -> None:
    build.library_file(PLAIN).chmod(0o777)
    with pytest.raises(build.BuildError, match="can be written by others"):
        build.library_file(PLAIN)


def test_a_link_to_another_library_is_refused(fake: FakeCompiler, tmp_path: Path) -> None:
    file = build.library_file(PLAIN)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(build.BuildError, match="belongs to somebody else"):
        build.library_file(PLAIN)


def test_what_belongs_to_another_user_is_refused(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(build.BuildError, match="belongs to somebody else"):
        build.library_file(PLAIN)


def test_a_folder_that_cannot_be_made_is_told(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.active() is None
    assert "cannot be used" in str(library.fallback_reason())


class TestForcedPath:
    def test_torch(self, monkeypatch: pytest.MonkeyPatch, fake: FakeCompiler) -> None:
        monkeypatch.setenv(library.VARIABLE, "torch")
        assert library.choice() == library.Choice(None, None)
        assert fake.calls == 0

    def test_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(library.VARIABLE, "quick")
        with pytest.raises(ConfigError, match=r"it may be one of amx, .*plain, torch\."):
            library.choice()

    def test_not_this_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "cpu_flags", lambda: frozenset({"sse2"}))
        assert [path.name for path in paths.available()] == ["plain"]
        monkeypatch.setenv(library.VARIABLE, "avx2")
        with pytest.raises(ConfigError, match="this processor cannot run"):
            library.choice()

    def test_not_to_be_had(self, monkeypatch: pytest.MonkeyPatch, fake: FakeCompiler) -> None:
        fake.write(code=1)
        monkeypatch.setenv(library.VARIABLE, "plain")
        with pytest.raises(ConfigError, match="could not compile"):
            library.choice()
