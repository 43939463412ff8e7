"""Every loss is pytorch-metric-learning's, and CLIP's is two cross-entropies: to 1e-12 in float64.

Two things of the library's are its own. Where no list of pairs has more than one, its pair losses
are 0: batches of one row beside one reference are left out. And SupCon's mean is over rows whose
loss is not 0, which with numbers are those that have a positive and another pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import losses
from tests.losses.others.naive import SIDE_LOSSES, assert_near
from tests.support.batches import value_and_gradients
from tests.support.regimes import REGIMES

library = pytest.importorskip("pytorch_metric_learning.losses")
distances = pytest.importorskip("pytorch_metric_learning.distances")

SIZES = [(48, None), (48, 31), (1, None), (2, None), (1, 40), (40, 1), (3, 2)]
REGIME_NAMES = [name for name in REGIMES if name not in ("sorted_labels", "one_direction_0.03")]
PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[[], torch.nn.Module], dict]] = {
    "multi-similarity": (losses.multi_similarity_loss, library.MultiSimilarityLoss, {}),
    "multi-similarity of other numbers": (
        losses.multi_similarity_loss,
        library.MultiSimilarityLoss,
        {"alpha": 5.0, "beta": 13.0, "base": -0.2},
    ),
    "supcon": (losses.supcon_loss, library.SupConLoss, {}),
    "supcon at 1": (losses.supcon_loss, library.SupConLoss, {"temperature": 1.0}),
    "ntxent": (losses.ntxent_loss, library.NTXentLoss, {}),
    "ntxent at 0.5": (losses.ntxent_loss, library.NTXentLoss, {"temperature": 0.5}),
}


def _drawn(regime: str, rows: int, references: int | None) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(rows)
    embeddings, labels = REGIMES[regime](rows + (references or 0), 12, generator)
    order = torch.randperm(len(labels), generator=generator)
    embeddings, labels = embeddings[order], labels[order]
    if references is None:
        return [embeddings.requires_grad_(), labels, None, None]
    own, others = (each.clone().requires_grad_() for each in embeddings.split([rows, references]))
    return [own, labels[:rows], others, labels[rows:]]


def _hold(ours: Tensor, theirs: Tensor, leaves: list[Tensor], about: str) -> None:
    # The library's zeros are of the embeddings alone.
    gradients = torch.autograd.grad(theirs, leaves, allow_unused=True, materialize_grads=True)
    expected = [theirs.detach(), *gradients]
    for value, truth in zip(value_and_gradients(ours, leaves), expected, strict=True):
        assert truth.isfinite().all(), about
        assert_near(value, truth, about=about)


@pytest.mark.parametrize("regime", REGIME_NAMES)
@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses_are_the_librarys(name: str, regime: str) -> None:
    function, theirs, numbers = PAIRS[name]
    for rows, references in SIZES:
        x, y, refs, ref_labels = _drawn(regime, rows, references)
        expected = theirs(**numbers)(x, y, ref_emb=refs, ref_labels=ref_labels)
        leaves = [x] if refs is None else [x, refs]
        _hold(
            function(x, y, refs, ref_labels, **numbers), expected, leaves, f"{rows}, {references}"
        )


@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses_of_batches_without_pairs_are_the_librarys(name: str) -> None:
    function, theirs, numbers = PAIRS[name]
    for labels in ([], [0], [0, 0], [0, 1], [0, 0, 0], [0, 1, 2]):
        x = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
        y = torch.tensor(labels, dtype=torch.int64)
        _hold(function(x, y, **numbers), theirs(**numbers)(x, y), [x], str(labels))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("regime", REGIME_NAMES)
def test_n_pairs_loss_is_the_librarys(regime: str, normalize: bool) -> None:
    distance = distances.DotProductSimilarity(normalize_embeddings=normalize)
    for rows in (48, 1, 2, 3, 0):
        x, y, *_ = _drawn(regime, rows, None)
        if not normalize:
            with torch.no_grad():
                x /= max(1.0, x.abs().max().item() if rows else 0)
        theirs = library.NPairsLoss(distance=distance)(x, y)
        _hold(losses.n_pairs_loss(x, y, normalize=normalize), theirs, [x], str(rows))


def _head(name: str, classes: int) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """A loss with weights, and what its weight is of ours (C, D)."""
    if name == "proxy-anchor":
        return library.ProxyAnchorLoss(classes, 12), lambda weight: weight
    if name == "proxy-nca":
        return library.ProxyNCALoss(classes, 12), lambda weight: weight
    if name == "arcface":
        return library.ArcFaceLoss(classes, 12, margin=math.degrees(0.5)), Tensor.t
    return library.CosFaceLoss(classes, 12), Tensor.t


@pytest.mark.parametrize("regime", REGIME_NAMES)
@pytest.mark.parametrize("name", [name for name in SIDE_LOSSES if name != "clip"])
def test_losses_with_class_vectors_are_the_librarys(name: str, regime: str) -> None:
    for rows, classes in ((40, 11), (40, 90), (1, 5), (2, 1), (30, 1)):
        generator = torch.Generator().manual_seed(rows + classes)
        x, y = REGIMES[regime](rows, 12, generator)
        y = y.remainder(classes)
        weight = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
        # Near the embeddings of their classes, as after training.
        weight[y[: rows // 2]] = (
            x[: rows // 2]
            + 0.1
            * torch.randn(rows // 2, 12, generator=generator, dtype=torch.float64)
            * x.norm(dim=1).median()
        )
        x, weight = x.requires_grad_(), weight.requires_grad_()
        theirs, converted = _head(name, classes)
        parameter = "proxies" if hasattr(theirs, "proxies") else "W"
        given = converted(weight)
        delattr(theirs, parameter)
        setattr(theirs, parameter, given)
        # In place of a parameter, whose gradient would not reach ours.
        theirs.cast_types = lambda *_: None
        ours = SIDE_LOSSES[name].function(x, y, weight)
        _hold(ours, theirs(x, y), [x, weight], f"{rows}, {classes}")


@pytest.mark.parametrize("radians", [0.0, 0.3, 1.5, math.pi])
def test_arcface_of_any_margin_is_the_librarys(radians: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    y = torch.arange(64) % 5
    theirs = library.ArcFaceLoss(5, 12, margin=math.degrees(radians), scale=10)
    theirs.W.data = weight.T.clone()
    ours = losses.arcface_loss(x, y, weight, margin=radians, scale=10)
    _hold(ours, theirs(x, y), [x], str(radians))


def _two_cross_entropies(images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
    logits = scale * F.normalize(images) @ F.normalize(texts).T
    order = torch.arange(len(images))
    both = (F.cross_entropy(each, order, reduction="sum") for each in (logits, logits.T))
    return sum(both) / max(2 * len(images), 1)


@pytest.mark.parametrize("regime", REGIME_NAMES)
def test_clip_loss_is_the_mean_of_both_cross_entropies(regime: str) -> None:
    for rows, scale in itertools.product((40, 1, 2, 0), (1.0, 14.3, 100.0)):
        both, _ = REGIMES[regime](max(2 * rows, 2), 12, torch.Generator().manual_seed(rows))
        leaves = [both[:rows].clone().requires_grad_(), both[rows : 2 * rows].clone()]
        leaves[1].requires_grad_()
        expected = _two_cross_entropies(*leaves, scale)
        _hold(losses.clip_loss(*leaves, scale), expected, leaves, f"{rows}, {scale}")
        leaves.append(torch.tensor(scale, dtype=torch.float64, requires_grad=True))
        expected = _two_cross_entropies(*leaves)
        _hold(losses.clip_loss(*leaves), expected, leaves, f"{rows}, learned {scale}")
