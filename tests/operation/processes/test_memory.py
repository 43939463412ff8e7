"""Memory of backends, each in a fresh process, so that nothing else counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT

pytest.importorskip("psutil", reason="the memory gauge needs the bench extra")

from bench.measuring.cases import Case
from bench.measuring.memory import measure
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


FEW_DEEP_ROWS = """
import sys
import torch
from bench.measuring.memory import peak_above_baseline
from circle_kernels import circle_loss

n, m, dim = map(int, sys.argv[1:])

def step(n, m, dim):
    labels = [torch.arange(rows) % 2 for rows in (n, m)]
    sides = [torch.ones(rows, dim, requires_grad=True) for rows in (n, m) if rows > 0]
    inputs = [value for pair in zip(sides, labels) for value in pair]
    return lambda: circle_loss(*inputs, backend="cpu").backward()

step(64, m, 16)()
print(peak_above_baseline(step(n, m, dim)).bytes)
"""


@pytest.mark.skipif(not cpu.supported_levels(), reason="the C++ kernel was not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
@pytest.mark.parametrize(
    ("n", "m", "dim"),
    [(2, 2, 1_000_000), (2, 0, 1_000_000), (1, 97, 100_000), (97, 1, 100_000), (100, 0, 100_000)],
)
def test_cpu_needs_little_beside_few_deep_rows(n: int, m: int, dim: int) -> None:
    """Gradients take as much as the inputs; panels of 96 rows would take hundreds of MB."""
    child = subprocess.run(
        [sys.executable, "-c", FEW_DEEP_ROWS, str(n), str(m), str(dim)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    inputs = (n + m) * dim * 4
    assert int(child.stdout) < 1.5 * inputs + 10e6
