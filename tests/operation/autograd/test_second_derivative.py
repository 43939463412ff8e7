"""The second derivative raises, but for the reference backend, which has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from tests.support.batches import batch, batch_with_references, leaves_of
from tests.support.public_losses import LOSSES, for_every_loss, listed_logsumexps
from tests.support.targets import Target, for_every_backend


def expect_no_second_derivative(output: Tensor, *leaves: Tensor) -> None:
    """Where the upstream gradient is constant, too, a penalty on the gradient raises."""
    gradient = torch.autograd.grad(output, leaves, create_graph=True)
    penalty = sum(each.square().sum() for each in gradient)
    with pytest.raises(RuntimeError, match="twice"):
        (output + penalty).backward()


@for_every_loss
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_penalty_on_the_gradient_raises(backend: str, loss: str) -> None:
    tensors = batch_with_references()
    leaves = leaves_of(tensors)
    expect_no_second_derivative(LOSSES[loss](*tensors, backend=backend), *leaves)
    expect_no_second_derivative(LOSSES[loss](*tensors, backend=backend), leaves[0])


@pytest.mark.backends
@for_every_backend
def test_penalty_on_the_gradient_raises_with_every_backend(target: Target) -> None:
    x, labels = batch(device=target.device)
    expect_no_second_derivative(circle_loss(x, labels, backend=target.backend), x)


@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_penalty_on_the_gradient_of_either_logsumexp_raises(backend: str) -> None:
    x, labels = batch()
    for index in (0, 1):
        statistics = pair_logsumexp(x, labels, formula=CircleFormula(), backend=backend)
        expect_no_second_derivative(statistics[index].sum(), x)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("references", [True, False])
def test_penalty_on_the_gradient_over_listed_pairs_raises(references: bool, short: bool) -> None:
    x, _, other, _ = batch_with_references()
    for index in (0, 1):
        statistics = listed_logsumexps(x, other if references else None, short)
        expect_no_second_derivative(statistics[index].sum(), x)


@pytest.mark.parametrize("scope", ["anchor", "batch"])
def test_reference_backend_has_the_second_derivative(scope: str) -> None:
    embeddings, labels = batch(dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda leaf: circle_loss(
            leaf, labels, gamma=8, scope=scope, detach_weights=False, backend="reference"
        ),
        embeddings,
    )
