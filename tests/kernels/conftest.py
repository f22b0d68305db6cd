"""Kernel tests run on every path that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppinfer.kernels.native import library, paths

PATHS = [*(path.name for path in paths.available()), "torch"]


@pytest.fixture(params=PATHS)
def kernel_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Forces one path for the test; the libraries are the user's own, compiled once."""
    monkeypatch.setenv(library.VARIABLE, request.param)
    library.choice.cache_clear()
    yield request.param
    library.choice.cache_clear()
