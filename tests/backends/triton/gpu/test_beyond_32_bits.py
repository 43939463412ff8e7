"""Problems of more than 2^31 pairs in the forms that have offsets of their own.

Each is held to the same problem with its last rows alone: what precedes these changes nothing of
them, and offsets that overflow do.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, class_circle_loss
from circle_kernels.backends.problem import LISTED_MULTIPLE, Needs, PairProblem, Passed
from tests.backends.triton.gpu.steps import for_every_dtype
from tests.support.targets import ON_GPU

pytestmark = ON_GPU
LAST = 4 * LISTED_MULTIPLE


def randn(rows: int, depth: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(rows, depth, device="cuda", generator=generator).to(dtype)


def both_passes(problem: PairProblem) -> list[Tensor]:
    """Log-sum-exps and the embeddings' gradient, of the last rows."""
    from circle_kernels.backends import triton as backend

    lse_pos, lse_neg, saved = backend.forward(problem)
    upstream = torch.ones_like(lse_pos)
    gradient, _ = backend.backward(
        problem, Passed(saved, upstream, upstream), Needs(embeddings=True, references=False)
    )
    return [each[-LAST:] for each in (lse_pos, lse_neg, gradient)]


def assert_close(results: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Equal but for rounding: numbers of rows decide how sums are split."""
    sums = torch.finfo(torch.float32).eps * 200
    allowed = (sums, sums, torch.finfo(dtype).eps * 4)[: len(results)]
    for value, other, eps in zip(results, expected, allowed, strict=True):
        assert torch.equal(value.isfinite(), other.isfinite())
        finite = other.isfinite()
        error = (value - other)[finite].abs().max().double()
        assert error <= (eps + sums) * other[finite].abs().max().double()


@for_every_dtype
def test_listed_pairs(dtype: torch.dtype) -> None:
    """The matrix of kinds has a byte for each pair."""
    rows, columns = (LISTED_MULTIPLE * blocks for blocks in (512, 468))
    assert rows * columns > 2**31
    # Filled in place: it is most of the memory that this takes.
    kinds = torch.zeros(rows, columns, dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(2)
    kinds[-LAST:].random_(0, 3, generator=generator)
    no_labels = torch.zeros(rows, dtype=torch.int64, device="cuda")
    problem = PairProblem(
        randn(rows, 64, dtype),
        no_labels,
        randn(columns, 64, dtype, seed=1),
        no_labels[:columns],
        CircleFormula(),
        normalize=True,
        listed=kinds,
    )
    alone = problem._replace(
        embeddings=problem.embeddings[-LAST:],
        labels=no_labels[:LAST],
        listed=kinds[-LAST:].clone(),
    )
    assert_close(both_passes(problem), both_passes(alone), dtype)


@for_every_dtype
def test_class_weights(dtype: torch.dtype) -> None:
    rows, classes = 4_096, 2**20
    assert rows * classes > 2**31
    weight = randn(classes, 32, dtype, seed=1)
    embeddings = randn(rows, 32, dtype).requires_grad_()
    labels = torch.randint(0, classes, (rows,), device="cuda")
    labels[-8:] = torch.arange(classes - 8, classes)
    options = {"gamma": 64.0, "reduction": "none", "backend": "triton"}
    losses = class_circle_loss(embeddings, labels, weight, **options)
    (gradient,) = torch.autograd.grad(losses.sum(), embeddings)
    last = embeddings[-LAST:].detach().requires_grad_()
    alone = class_circle_loss(last, labels[-LAST:], weight, **options)
    (expected,) = torch.autograd.grad(alone.sum(), last)
    results = [losses[-LAST:], losses[-LAST:], gradient[-LAST:]]
    assert_close(results, [alone, alone, expected], dtype)


@pytest.mark.parametrize("every_limit_1", [False, True])
@for_every_dtype
def test_batch_compared_with_itself(every_limit_1: bool, dtype: torch.dtype) -> None:
    """The last rows beside all as references, each of which is its own positive there, so that
    only the negatives are compared."""
    from tests.backends.triton.gpu.lanes import Lane

    rows = 46_500
    assert rows**2 > 2**31
    embeddings = randn(rows, 32, dtype)
    labels = torch.arange(rows, device="cuda") // 4
    problem = PairProblem(embeddings, labels, None, None, CircleFormula(), normalize=True)
    with Lane("cuda", rows, every_limit_1).limits():
        whole = both_passes(problem)
    alone = both_passes(
        problem._replace(
            embeddings=embeddings[-LAST:],
            labels=labels[-LAST:],
            ref_emb=embeddings,
            ref_labels=labels,
        )
    )
    assert_close(whole[1:2], alone[1:2], dtype)
