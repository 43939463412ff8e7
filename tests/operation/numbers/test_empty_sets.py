"""Rows without positives or negatives, and batches without pairs."""

from __future__ import annotations

import math

import pytest
import torch

from circle_kernels import CircleFormula, circle_loss, pair_logsumexp
from tests.support.batches import batch
from tests.support.targets import Target, for_every_backend

pytestmark = pytest.mark.backends


@for_every_backend
def test_row_without_positives_has_zero_loss_and_gradient(target: Target) -> None:
    embeddings, labels = batch(device=target.device)
    references, ref_labels = embeddings.detach()[:5], torch.full((5,), 0, device=target.device)
    ref_labels[0] = 1
    losses = circle_loss(
        embeddings, labels, references, ref_labels, reduction="none", backend=target.backend
    )
    losses.sum().backward()
    without_positives = labels == 2
    assert (losses[without_positives] == 0).all()
    assert (embeddings.grad[without_positives] == 0).all()
    assert (losses[~without_positives] > 0).all()
    mean = circle_loss(embeddings, labels, references, ref_labels, backend=target.backend)
    torch.testing.assert_close(mean, losses[~without_positives].mean())
    mean_all = circle_loss(
        embeddings, labels, references, ref_labels, reduction="mean_all", backend=target.backend
    )
    torch.testing.assert_close(mean_all, losses.mean())


@for_every_backend
def test_row_without_negatives_has_zero_loss_and_gradient(target: Target) -> None:
    embeddings, labels = batch(device=target.device)
    labels = torch.zeros_like(labels)
    losses = circle_loss(embeddings, labels, reduction="none", backend=target.backend)
    losses.sum().backward()
    assert (losses == 0).all()
    assert (embeddings.grad == 0).all()


@for_every_backend
@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum"])
@pytest.mark.parametrize("scope", ["anchor", "batch"])
@pytest.mark.parametrize(("n", "m"), [(0, None), (1, None), (2, None), (0, 3), (3, 0), (0, 0)])
def test_nothing_to_compare_is_zero_attached_to_the_graph(
    target: Target, n: int, m: int | None, scope: str, reduction: str
) -> None:
    embeddings = torch.randn(n, 4, device=target.device, requires_grad=True)
    labels = torch.arange(n, device=target.device)
    references = None if m is None else torch.randn(m, 4, device=target.device, requires_grad=True)
    ref_labels = None if m is None else torch.arange(10, 10 + m, device=target.device)
    loss = circle_loss(
        embeddings,
        labels,
        references,
        ref_labels,
        scope=scope,
        reduction=reduction,
        backend=target.backend,
    )
    assert loss.shape == ()
    assert loss == 0
    loss.backward()
    assert embeddings.grad.shape == (n, 4)
    assert (embeddings.grad == 0).all()
    if references is not None:
        assert (references.grad == 0).all()


@for_every_backend
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
@pytest.mark.parametrize(("n", "m"), [(1, None), (2, None), (40, None), (12, 1), (12, 40)])
def test_set_without_pairs_is_empty_whatever_its_row_holds(
    target: Target, n: int, m: int | None, bad: float, normalize: bool
) -> None:
    for dtype in target.few_dtypes:
        embeddings, _ = batch(n, dtype=dtype, device=target.device)
        embeddings = embeddings.detach().clone()
        labels = torch.zeros(n, dtype=torch.int64, device=target.device)
        rows = sorted({0, n // 2, n - 1})
        for row in rows:
            embeddings[row, 0] = bad
            labels[row] = 1 + row  # in a class of its own
        references: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if m is not None:
            references = (
                batch(m, dtype=dtype, device=target.device)[0].detach(),
                labels.new_zeros(m),
            )
        lse_pos, lse_neg = pair_logsumexp(
            embeddings,
            labels,
            *references,
            formula=CircleFormula(),
            normalize=normalize,
            backend=target.backend,
        )
        assert (lse_pos[rows] == -math.inf).all()
        without_negatives = torch.ones_like(labels, dtype=torch.bool)
        without_negatives[rows] = False
        if m is None:
            without_negatives[:] = n == 1
        assert torch.equal(lse_neg == -math.inf, without_negatives)
        losses = circle_loss(
            embeddings,
            labels,
            *references,
            normalize=normalize,
            reduction="none",
            backend=target.backend,
        )
        if n == 1:
            assert (losses == 0).all()
        else:
            # Nothing plus what saw a bad number is not nothing.
            assert torch.equal(losses[rows].isnan(), torch.full_like(losses[rows], bad != 1) == 1)
