"""Random problems against float64, with seeds that never change."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.random_problems import (
    PROBLEMS,
    SEEDS,
    Problem,
    as_leaves,
    draw_problem,
    in_its_layout,
    logsumexps,
    naive_logsumexps,
)
from tests.support.targets import Target, for_every_backend
from tests.support.yardstick import gradients

pytestmark = pytest.mark.sanitized


def assert_as_exact_as_eager(problem: Problem, target: Target, skip_below: float = 0.0) -> None:
    """Losses and gradients within twice the error of naive PyTorch, beyond rounding."""
    device, dtype = target.device, problem.dtype
    results = []
    for name, inputs in (
        ("ours", in_its_layout(problem, device)),
        ("truth", as_leaves(problem, torch.float64, "cpu")),
        ("eager", as_leaves(problem, dtype, "cpu")),
    ):
        if name == "ours":
            statistics = logsumexps(problem, inputs, target.backend, skip_below)
        else:
            statistics = naive_logsumexps(problem, inputs)
        slopes = gradients(*statistics, inputs)
        results.append([each.detach().cpu().double() for each in (*statistics, *slopes)])
    gamma = problem.formula.gamma
    norms = torch.cat([x.double().norm(dim=1) for x in inputs if x is not None])
    for place, (ours, truth, eager) in enumerate(zip(*results, strict=True)):
        message = f"{problem}, result {place}"
        finite = truth.isfinite()
        assert torch.equal(ours[~finite], truth[~finite]), message
        if not finite.any():
            continue
        scale, eps = truth[finite].abs().max().item(), torch.finfo(dtype).eps
        if place < 2:
            # Sums are kept in float32, and the logarithm of one near 1 has its rounding.
            scale = max(scale, 1.0)
            eps = min(eps, torch.finfo(torch.float32).eps)
        else:
            # Where terms of this size cancel, what is left is their rounding.
            scale = max(scale, gamma / norms.min().item())
        left_out = skip_below if place >= 2 else 0.0
        allowed = (eps * (16 + 2 * gamma) + left_out) * scale
        eager_error = (eager - truth)[finite].abs().max().item()
        if math.isfinite(eager_error):
            allowed += 2 * eager_error
        error = (ours - truth)[finite].abs().max().item()
        assert error <= allowed, f"{message}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("seed", SEEDS)
def test_random_problems_are_as_exact_as_eager(target: Target, seed: int) -> None:
    modes = ["self", "references", "classes"]
    if target.backend != "triton" and target.device == "cpu":
        modes += ["listed", "few listed"]
    for index in range(PROBLEMS // len(SEEDS)):
        problem = draw_problem(1000 * seed + index, target.dtypes, modes)
        assert_as_exact_as_eager(problem, target)


@pytest.mark.backends
@for_every_backend
def test_random_problems_with_pairs_left_out_stay_within_the_share(target: Target) -> None:
    for index in range(PROBLEMS // 4):
        problem = draw_problem(77_000 + index, target.dtypes, ["self", "references", "classes"])
        assert_as_exact_as_eager(problem, target, skip_below=2.0**-10)
