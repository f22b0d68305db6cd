"""Commands under test find a fake engine."""

from __future__ import annotations

import sys
import types

import pytest
from support.fake_engine import FakeEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """Takes the place of the engine; ``engine.made`` are the ones that a command made."""
    module = types.ModuleType("ppinfer.engine.engine")
    module.PPInferEngine = FakeEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ppinfer.engine.engine", module)
    monkeypatch.setattr(FakeEngine, "made", [])
    return FakeEngine
