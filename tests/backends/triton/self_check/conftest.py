"""Every test has its own device, which nobody has checked, and its own cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    # Not above: what skips tests without Triton may be in no conftest.
    from tests.backends.triton.self_check.stand_in import stand_in

    return stand_in(monkeypatch, tmp_path / "cache")
