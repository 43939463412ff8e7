"""Memory of the tiled backend, in a fresh process, so that nothing else counts."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("psutil", reason="the memory gauge needs the bench extra")

from bench.cases import Case
from bench.memory import measure


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
def test_tiled_needs_less_than_600_mb_where_naive_needs_gigabytes() -> None:
    """N = 16384: one float32 similarity matrix alone would be 1074 MB."""
    peak = measure("tiled", Case(16384, 128))
    assert peak.bytes < 600e6, peak
