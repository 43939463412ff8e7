"""Lazily negated and conjugated views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circle_kernels import CircleFormula, pair_logsumexp
from tests.support.batches import (
    ROWS,
    batch,
    batch_with_references,
    leaves_of,
    randn,
    value_and_gradients,
)
from tests.support.public_losses import (
    LOSSES,
    assert_close,
    for_every_loss,
    listed_logsumexps,
    truth,
)
from tests.support.targets import Target, for_every_backend


def lazily_negated(value: Tensor) -> Tensor:
    """What ``complex(a, b).conj().imag`` is for b = -value: its memory holds the negative."""
    value = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert value.is_neg()
    return value


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("position", [0, 2], ids=["embeddings", "references"])
def test_lazily_negated_views_are_the_numbers_that_they_stand_for(
    target: Target, position: int
) -> None:
    if torch.float32 not in target.dtypes:
        pytest.skip("complex parts are float32")
    expect_numbers_of_negated("circle", position, target.backend, target.device)
    expect_numbers_of_negated("class circle", position, target.backend, target.device)


@pytest.mark.parametrize("position", [0, 2], ids=["embeddings", "references"])
@for_every_loss
def test_lazily_negated_views_are_the_numbers_in_every_loss(loss: str, position: int) -> None:
    expect_numbers_of_negated(loss, position, "auto", "cpu")


def expect_numbers_of_negated(loss: str, position: int, backend: str, device: str) -> None:
    tensors = list(batch_with_references(device=device, requires_grad=False))
    expected = truth(loss, [value.cpu() for value in tensors])
    tensors[position] = lazily_negated(tensors[position])
    leaves = leaves_of(tensors)
    output = LOSSES[loss](*tensors, backend=backend)
    assert_close([each.cpu() for each in value_and_gradients(output, leaves)], expected)


@pytest.mark.backends
@for_every_backend
def test_lazily_negated_upstream_gradient_is_the_numbers_that_it_stands_for(target: Target) -> None:
    for dtype in set(target.dtypes) & {torch.float32, torch.float64}:
        tensors = batch(device=target.device)
        x, labels = tensors[0].detach().to(dtype).requires_grad_(), tensors[1]
        statistics = pair_logsumexp(x, labels, formula=CircleFormula(), backend=target.backend)
        upstream = tuple(randn(ROWS, seed=seed).to(x) for seed in (3, 4))
        expected = torch.autograd.grad(statistics, x, upstream, retain_graph=True)
        negated = tuple(map(lazily_negated, upstream))
        assert torch.equal(torch.autograd.grad(statistics, x, negated)[0], expected[0])


@pytest.mark.parametrize("short", [True, False])
def test_lazily_negated_references_of_listed_pairs(short: bool) -> None:
    x, _, references, _ = batch_with_references(requires_grad=False)
    negated = lazily_negated(references)
    expected = list(listed_logsumexps(x.double(), references.double(), short))
    assert_close(listed_logsumexps(x, negated, short), expected)
