"""Micro-benchmarks of the loss, for work on a kernel.

``pytest bench --benchmark-autosave`` before a change, ``pytest bench --benchmark-compare`` after
it; ``-k tiled`` for one variant. Groups are cases, so variants stand beside one another.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measuring.cases import Case
from bench.measuring.memory import default_limit
from bench.measuring.timing import clock_for, warm_up
from bench.measuring.variants import Variant, Work


def _prepare(case: Case, variant: Variant, need_backward: bool) -> Work:
    reason = variant.unusable(case, default_limit(case.device))
    if reason is not None:
        pytest.skip(reason)
    if need_backward and not variant.has_backward:
        pytest.skip(f"{variant.name} has no backward")
    torch.compiler.reset()
    work = variant.work(case)
    warm_up(work, clock_for(case.device))
    return work


def _run(benchmark: BenchmarkFixture, case: Case, what: str, step: Callable[[], object]) -> None:
    wait = clock_for(case.device).wait

    def step_and_wait() -> None:
        step()
        wait()

    benchmark.group = f"{case} {what}"
    benchmark(step_and_wait)


def test_forward(benchmark: BenchmarkFixture, case: Case, variant: Variant) -> None:
    """The forward pass of a training step, with its graph."""
    work = _prepare(case, variant, need_backward=False)
    _run(benchmark, case, "forward", work.forward)


def test_forward_backward(benchmark: BenchmarkFixture, case: Case, variant: Variant) -> None:
    """A training step: loss and gradient."""
    work = _prepare(case, variant, need_backward=True)
    _run(benchmark, case, "forward + backward", work.step)
