"""Fixtures of the tests of ``python -m bench tune``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file of the user's but what the test names."""
    from circle_kernels.backends.triton.settings_table import SETTINGS_VARIABLE, load_table

    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    load_table.cache_clear()
    yield
    load_table.cache_clear()
