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
def test_tiled_needs_less_than_60_mb_where_naive_needs_a_gigabyte() -> None:
    """N = 8192: one float32 similarity matrix alone would be 268 MB."""
    peak = measure("tiled", Case(8192, 32))
    assert peak.bytes < 60e6, peak


@pytest.mark.skipif(not cpu.supported_levels(), reason="CIRCLE_KERNELS_NO_CPU_KERNEL is set")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
def test_cpu_needs_less_than_60_mb_at_32768_rows() -> None:
    """Forward and backward, beside inputs and gradients; one similarity matrix would be 4 GB."""
    peak = measure("cpu", Case(32768, 32))
    assert peak.bytes < 60e6, peak


SHAPES = [
    (2, 2, 1_000_000),
    (2, 0, 1_000_000),
    (1, 97, 100_000),
    (97, 1, 100_000),
    (100, 0, 100_000),
]
# What is freed goes back, so that the next shape's memory is not what is left of the last one's.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
FEW_DEEP_ROWS = """
import sys
import torch
from bench.measuring.memory import peak_above_baseline
from circle_kernels import circle_loss

def step(n, m, dim):
    labels = [torch.arange(rows) % 2 for rows in (n, m)]
    sides = [torch.ones(rows, dim, requires_grad=True) for rows in (n, m) if rows > 0]
    inputs = [value for pair in zip(sides, labels) for value in pair]
    return lambda: circle_loss(*inputs, backend="cpu").backward()

step(64, 16, 16)()
for shape in sys.argv[1:]:
    print(peak_above_baseline(step(*map(int, shape.split("x")))).bytes)
"""


@pytest.mark.skipif(not cpu.supported_levels(), reason="the C++ kernel was not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' peak memory")
def test_cpu_needs_little_beside_few_deep_rows() -> None:
    """Gradients take as much as the inputs; panels of 96 rows would take hundreds of MB."""
    shapes = ["x".join(map(str, shape)) for shape in SHAPES]
    child = subprocess.run(
        [sys.executable, "-c", FEW_DEEP_ROWS, *shapes],
        env={**os.environ, **RETURN_FREED_MEMORY, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    for (n, m, dim), peak in zip(SHAPES, map(int, child.stdout.split()), strict=True):
        inputs = (n + m) * dim * 4
        assert peak < 1.5 * inputs + 10e6, (n, m, dim)
