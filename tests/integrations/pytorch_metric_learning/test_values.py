"""Rows' losses and gradients are the library's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tests.support.regimes import REGIMES

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from circle_kernels.integrations.pytorch_metric_learning import CircleLoss
from tests.integrations.pytorch_metric_learning.comparison import MINERS, assert_same, batch


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("regime", REGIMES)
def test_rows_and_gradient_are_the_librarys(regime: str, miner: str) -> None:
    embeddings, labels = batch(regime)
    mine = MINERS[miner]()
    assert_same(embeddings, labels, None if mine is None else mine(embeddings, labels))


@pytest.mark.parametrize("regime", ["random", "clusters", "collapsed", "unlike_norms"])
def test_rows_and_gradient_in_float64_are_the_librarys(regime: str) -> None:
    embeddings, labels = batch(regime, dtype=torch.float64)
    for mine in (None, miners.BatchHardMiner(), miners.MultiSimilarityMiner()):
        assert_same(embeddings, labels, None if mine is None else mine(embeddings, labels))


@pytest.mark.parametrize("rows", [3, 96, 300])
@pytest.mark.parametrize(("m", "gamma"), [(0.25, 256), (0.25, 32)])
def test_rows_and_gradient_at_other_settings_and_sizes(rows: int, m: float, gamma: float) -> None:
    embeddings, labels = batch("random", rows)
    for mine in (None, miners.BatchHardMiner(), miners.MultiSimilarityMiner()):
        indices = None if mine is None else mine(embeddings, labels)
        assert_same(embeddings, labels, indices, m=m, gamma=gamma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [2, 3, 24, 300])
@pytest.mark.parametrize("gamma", [1.0, 80.0, 1000.0])
@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf])
def test_reduced_loss_and_gradient_are_the_librarys(
    dtype: torch.dtype, rows: int, gamma: float, bad: float | None
) -> None:
    """With its own reducer, also where most rows have a loss of 0 and where there is NaN."""
    embeddings, labels = batch("clusters", rows, dtype)
    if bad is not None:
        embeddings[1, 0] = bad
    results = []
    for kind in (losses.CircleLoss, CircleLoss):
        leaf = embeddings.clone().requires_grad_()
        loss = kind(m=-0.2, gamma=gamma)(leaf, labels)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for theirs, ours in zip(*results, strict=True):
        scale = theirs.nan_to_num(0).abs().max().item()
        # The library's softplus is the identity from 20 on.
        tolerance = (1e-4 if dtype == torch.float32 else 1e-8) * scale
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)


def test_gradient_of_references() -> None:
    embeddings, labels = batch("random", 40)
    for indices in (None, lmu.get_all_pairs_indices(labels, labels[:30]), batch_hard(embeddings)):
        gradients = []
        for loss in (losses.CircleLoss(), CircleLoss()):
            references = embeddings[:30].flip(1).requires_grad_()
            loss(embeddings, labels, indices, references, labels[:30]).backward()
            gradients.append(references.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def batch_hard(embeddings: Tensor) -> tuple[Tensor, ...]:
    """A few triplets among 30 references, one of them twice."""
    anchors = torch.tensor([0, 1, 1, 7])
    return anchors, torch.tensor([3, 4, 4, 29]), torch.tensor([9, 8, 8, 11])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_and_rows_have_the_embeddings_dtype(dtype: torch.dtype) -> None:
    embeddings, labels = batch("random", 32, dtype)
    for indices in (None, lmu.get_all_pairs_indices(labels), lmu.get_all_triplets_indices(labels)):
        leaf = embeddings.clone().requires_grad_()
        loss = CircleLoss()(leaf, labels, indices)
        loss.backward()
        assert loss.dtype == leaf.grad.dtype == dtype
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("m", [1.5, -3])
def test_any_margin_is_fused(m: float) -> None:
    embeddings, labels = batch("random", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(embeddings, labels, None, m=m)


def test_plain_inner_products_are_fused() -> None:
    embeddings, labels = batch("clusters", 40)
    results = []
    for kind in (losses.CircleLoss, CircleLoss):
        loss = kind()
        loss.distance.normalize_embeddings = False
        results.append(loss(embeddings / 4, labels))
    torch.testing.assert_close(*results, rtol=1e-5, atol=0)


def test_under_autocast_nothing_is_cast_down() -> None:
    embeddings, labels = batch("random", 60)
    for mine in MINERS.values():
        indices = None if mine() is None else mine()(embeddings, labels)
        with torch.autocast("cpu", torch.bfloat16):
            loss = CircleLoss()(embeddings, labels, indices)
        assert torch.equal(loss, CircleLoss()(embeddings, labels, indices))
