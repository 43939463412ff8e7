"""Options of the micro-benchmarks: ``pytest bench --bench-sizes 4096x128 --bench-device cuda``."""

from __future__ import annotations

import argparse

import pytest

from bench.measuring.cases import Case, parse_sizes
from bench.measuring.data import REGIMES
from bench.measuring.variants import VARIANTS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which sizes, device and dtype."""
    group = parser.getgroup("circle_kernels")
    group.addoption("--bench-sizes", default="256x128,1024x128", help="NxD,...")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda")
    group.addoption("--bench-dtype", default="float32", help="of the embeddings")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every benchmark all variants on all cases."""
    if not {"case", "variant"} <= set(metafunc.fixturenames):
        return
    options = metafunc.config.option
    try:
        sizes = parse_sizes(options.bench_sizes)
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"--bench-sizes: {error}") from error
    cases = [
        Case(rows, dim, regime, options.bench_dtype, options.bench_device)
        for rows, dim in sizes
        for regime in REGIMES
    ]
    metafunc.parametrize("case", cases, ids=lambda case: str(case).replace(" ", "-"))
    metafunc.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
