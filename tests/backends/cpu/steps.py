"""Problems for the C++ kernel, and both passes over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, pair_logsumexp
from circle_kernels.backends import cpu
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from tests.support import batches
from tests.support.targets import INTERPRETED

LEVELS = cpu.supported_levels()
NEEDS_KERNEL = [
    pytest.mark.sanitized,
    pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for Triton"),
    pytest.mark.skipif(not LEVELS, reason="CIRCLE_KERNELS_NO_CPU_KERNEL is set"),
]
FORMULA = CircleFormula(m=0.25, gamma=64)


def batch(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    classes = max(1, n // 4)
    return [*batches.batch(n, d, classes=classes, random_labels=True, dtype=dtype, seed=seed)]


def class_batch(n: int, num_classes: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Rows against class weights, whose labels are consecutive numbers; some rows have no class."""
    beyond = num_classes // 9
    embeddings, labels, weight = batches.class_batch(
        n, d, classes=num_classes, random_labels=False, dtype=dtype
    )
    generator = torch.Generator().manual_seed(n)
    labels.random_(-beyond, num_classes + beyond, generator=generator)
    return [embeddings, labels, weight, torch.arange(num_classes)]


def results(inputs: list[Tensor], backend: str = "cpu", **options) -> list[Tensor]:
    """Both log-sum-exps and every gradient, for unlike upstream gradients."""
    statistics = pair_logsumexp(*inputs, formula=FORMULA, backend=backend, **options)
    weights = torch.linspace(0.5, 2, 2 * len(inputs[0]), dtype=statistics[0].dtype).view(2, -1)
    total = sum(
        (weight * value.masked_fill(value.isinf(), 0)).sum()
        for weight, value in zip(weights, statistics, strict=True)
    )
    return [*(value.detach() for value in statistics), *torch.autograd.grad(total, inputs[::2])]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for value, other in zip(ours, expected, strict=True):
        assert torch.equal(value, other)


def two_passes(inputs: list[Tensor], between=lambda saved: saved, **changes) -> Tensor:
    """The embeddings' gradient from the backend's two functions; ``between`` sees what is saved."""
    values = [value.detach() for value in inputs]
    problem = PairProblem(*values, *(None,) * (4 - len(values)), FORMULA, True)
    lse_pos, _, saved = cpu.forward(problem)
    upstream = torch.linspace(0.5, 2, len(lse_pos), dtype=lse_pos.dtype)
    passed = Passed(between(saved), upstream, -upstream)
    problem = problem._replace(**changes)
    gradient, _ = cpu.backward(problem, passed, Needs(embeddings=True, references=False))
    return gradient
