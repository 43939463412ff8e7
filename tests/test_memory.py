"""Memory of backends, each in a fresh process, so that nothing else counts."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("psutil", reason="the memory gauge needs the bench extra")

from bench.cases import Case
from bench.memory import measure
from circle_kernels.backends import cpu


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
def test_tiled_needs_less_than_600_mb_where_naive_needs_gigabytes() -> None:
    """N = 16384: one float32 similarity matrix alone would be 1074 MB."""
    peak = measure("tiled", Case(16384, 128))
    assert peak.bytes < 600e6, peak


@pytest.mark.skipif(not cpu.supported_levels(), reason="CIRCLE_KERNELS_NO_CPU_KERNEL is set")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
def test_cpu_needs_less_than_200_mb_at_65536_rows() -> None:
    """Forward and backward, beside inputs and gradients; one similarity matrix would be 17 GB."""
    peak = measure("cpu", Case(65536, 128))
    assert peak.bytes < 200e6, peak
