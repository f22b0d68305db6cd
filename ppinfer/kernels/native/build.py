"""Compiles the kernels for one path, once for each processor and user.

The library lies in a folder that only its owner may write to, under a name that says what it was
made from: sources, flags, compiler and processor. It is loaded into this process, so a folder or
file that somebody else could have written is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from ppinfer.kernels.native.paths import KernelPath, cpu_flags

SOURCES = Path(__file__).parent / "src"

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fopenmp",
    # Results must not depend on what the compiler fuses, and no kernel reads errno.
    "-ffp-contract=off", "-fno-math-errno", "-w",
)  # fmt: skip
_COMPILE_SECONDS = 60.0  # on a machine that does much else; 3 s on free cores
_POLL_SECONDS = 0.02
_DAY = 86_400.0
_KEPT_DAYS = 30
"""Libraries of older sources go once they were not used for so long."""


class BuildError(Exception):
    """There is no library; the message is one sentence for the user."""


def cache_folder() -> Path:
    """Where libraries are kept: under ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()
    return base / "ppinfer" / "kernels"


def compiler() -> str | None:
    """The path of the system's C++ compiler."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def library_file(path: KernelPath) -> Path:
    """The library of ``path``, compiled first if it is not there; seconds, a few at most.

    Several processes may ask at once: one compiles, the others wait for it.

    Raises:
        BuildError: no compiler, it failed, or the cache folder is not safe or not usable.
    """
    tool = compiler()
    if tool is None:
        raise BuildError("there is no C++ compiler (c++, g++ or clang++)")
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(folder)
        target = folder / f"{path.name}-{_key(path, tool)}.so"
        if not target.exists():
            with _lock(folder / f"{path.name}.lock"):
                if not target.exists():
                    _compile(path, tool, target)
                    _forget_unused(folder, path)
        _require_own(target)
        if time.time() - target.stat().st_mtime > _DAY:
            os.utime(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise BuildError(f"the cache of compiled kernels cannot be used ({error})") from error
    return target


def _key(path: KernelPath, tool: str) -> str:
    version = subprocess.run([tool, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(version)
    for text in (tool, path.name, *_FLAGS, *path.flags, *sorted(cpu_flags())):
        digest.update(text.encode() + b"\0")
    digest.update(sources_digest().encode())
    return digest.hexdigest()[:24]


@cache
def sources_digest() -> str:
    """Names these sources: what was measured with others may no longer hold."""
    return digest_of(SOURCES.iterdir())


def digest_of(sources: Iterable[Path]) -> str:
    """Changes with the name and the content of every file."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:12]


def _compile(path: KernelPath, tool: str, target: Path) -> None:
    """Write under another name first, so that ``target`` is never there in part."""
    command = [tool, *_FLAGS, *path.flags, f"-DPPINFER_{path.name.upper()}"]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [f"{folder}/{source.stem}.o" for source in sources]
        library = f"{folder}/library.so"
        with ThreadPoolExecutor(len(sources)) as pool:
            pairs = zip(sources, objects, strict=True)
            parts = [[*command, "-c", str(source), "-o", to] for source, to in pairs]
            list(pool.map(_run, parts))
        _run([*command, "-shared", *objects, "-o", library])
        os.chmod(library, 0o700)
        os.rename(library, target)


def _run(command: list[str]) -> None:
    """Raises ``BuildError``."""
    tool = command[0]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{tool} took more than {_COMPILE_SECONDS:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise BuildError(f"{tool} could not compile them ({said})")


def _forget_unused(folder: Path, path: KernelPath) -> None:
    """Remove this path's libraries that nobody used for long; one that is loaded stays so."""
    for file in folder.glob(f"{path.name}-*.so"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _KEPT_DAYS * _DAY:
                file.unlink()


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Held by one process at a time; after the time a compilation may take, go on without it."""
    with open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as held:
        end = time.monotonic() + _COMPILE_SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
        yield


def _require_own(path: Path) -> None:
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode) or facts.st_uid != os.geteuid():
        raise BuildError(f"{path} belongs to somebody else")
    if facts.st_mode & 0o022:
        raise BuildError(f"{path} can be written by others")
