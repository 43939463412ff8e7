"""Other papers' losses beside what they are worth with the whole matrix of similarities."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels import CircleFormula, circle_loss, losses, unified_loss
from circle_kernels.logsumexp import masked_logsumexp

Rows = tuple[Tensor, Tensor]  # each row's loss, and how often a mean counts it


def softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=50.0)


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.float() if rows.dtype.itemsize == 2 else rows)


def _both(lse_pos: Tensor, lse_neg: Tensor) -> Rows:
    return softplus(lse_pos + lse_neg), (lse_pos != -math.inf) & (lse_neg != -math.inf)


def _circle(s: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    formula = CircleFormula(gamma=16)
    return _both(
        masked_logsumexp(formula.positive_logits(s), positive, dim=1),
        masked_logsumexp(formula.negative_logits(s), negative, dim=1),
    )


def _unified(s: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    return _both(
        masked_logsumexp(-16 * s, positive, dim=1),
        masked_logsumexp(16 * (s + 0.2), negative, dim=1),
    )


def _multi_similarity(s: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    pos = softplus(masked_logsumexp(-2 * (s - 0.5), positive, dim=1)) / 2
    neg = softplus(masked_logsumexp(50 * (s - 0.5), negative, dim=1)) / 50
    return pos + neg, torch.ones_like(pos)


def _supcon(s: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    logits = s / 0.1
    present = positive.any(1) & ((positive | negative).sum(1) > 1) & negative.any()
    total = torch.where(present, masked_logsumexp(logits, positive | negative, dim=1), 0.0)
    mean = torch.where(positive, logits, 0.0).sum(1) / positive.sum(1).clamp_min(1)
    return torch.where(present, total - mean, 0.0), present


def _ntxent(s: Tensor, positive: Tensor, negative: Tensor) -> Rows:
    logits = s / 0.07
    of_negatives = masked_logsumexp(logits, negative, dim=1)
    each = softplus(of_negatives[:, None] - logits)
    return torch.where(positive, each, 0.0).sum(1), positive.sum(1)


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs; ``naive`` has its rows from similarities and masks (N, M) of both kinds."""

    function: Callable[..., Tensor]
    naive: Callable[[Tensor, Tensor, Tensor], Rows]
    gamma: float  # what stands for it in what rounding costs


PAIR_LOSSES = {
    "circle": PairLoss(functools.partial(circle_loss, gamma=16), _circle, 16),
    "unified": PairLoss(functools.partial(unified_loss, m=0.2, gamma=16), _unified, 16),
    "multi-similarity": PairLoss(losses.multi_similarity_loss, _multi_similarity, 50),
    "supcon": PairLoss(losses.supcon_loss, _supcon, 10),
    "ntxent": PairLoss(losses.ntxent_loss, _ntxent, 15),
}
for_every_pair_loss = pytest.mark.parametrize("name", PAIR_LOSSES)
OTHER_PAIR_LOSSES = tuple(PAIR_LOSSES)[2:]
for_every_other_pair_loss = pytest.mark.parametrize("name", OTHER_PAIR_LOSSES)


def reduced(rows: Rows, reduction: str) -> Tensor:
    values, counted = rows
    if reduction == "none":
        return values
    number = {"mean": counted.sum(), "mean_all": torch.tensor(len(values)), "sum": 1}[reduction]
    return values.sum() / max(int(number), 1)


def masks(labels: Tensor, ref_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which pairs are positive and which are negative."""
    positive = labels[:, None] == (labels if ref_labels is None else ref_labels)[None, :]
    negative = ~positive
    return (positive.fill_diagonal_(False) if ref_labels is None else positive), negative


def naive_pair_loss(
    name: str,
    embeddings: Tensor,
    references: Tensor | None,
    kinds: tuple[Tensor, Tensor],
    reduction: str = "mean",
) -> Tensor:
    rows = unit(embeddings)
    similarity = rows @ (rows if references is None else unit(references)).T
    return reduced(PAIR_LOSSES[name].naive(similarity, *kinds), reduction)


def _proxy_anchor(x: Tensor, labels: Tensor, proxies: Tensor) -> Tensor:
    s = unit(proxies) @ unit(x).T
    positive = torch.arange(len(proxies), device=x.device)[:, None] == labels
    pos = softplus(masked_logsumexp(-32 * (s - 0.1), positive, dim=1)).sum()
    neg = softplus(masked_logsumexp(32 * (s + 0.1), ~positive, dim=1)).sum()
    return pos / positive.any(1).sum().clamp_min(1) + neg / len(proxies)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


def _proxy_nca(x: Tensor, labels: Tensor, proxies: Tensor) -> Tensor:
    distances = (unit(x)[:, None] - unit(proxies)).square().sum(2)
    return _cross_entropy(-distances, labels)


def _arcface(x: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    s = unit(x) @ unit(weight).T
    angle = s.clamp(-1, 1).acos()
    turned = torch.where(angle + 0.5 <= math.pi, (angle + 0.5).cos(), s - 0.5 * math.sin(0.5))
    return _cross_entropy(64 * torch.where(F.one_hot(labels, len(weight)) > 0, turned, s), labels)


def _cosface(x: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    s = unit(x) @ unit(weight).T
    own = F.one_hot(labels, len(weight)).to(s.dtype)
    return _cross_entropy(64 * (s - 0.35 * own), labels)


def _clip(x: Tensor, _: Tensor, texts: Tensor) -> Tensor:
    logits = 20 * unit(x) @ unit(texts).T
    order = torch.arange(len(x), device=x.device)
    return (_cross_entropy(logits, order) + _cross_entropy(logits.T, order)) / 2


@dataclass(frozen=True)
class SideLoss:
    """A loss of embeddings, labels and another matrix: of proxies, class weights or texts."""

    function: Callable[..., Tensor]
    naive: Callable[[Tensor, Tensor, Tensor], Tensor]
    gamma: float


def clip_loss(x: Tensor, _: Tensor, texts: Tensor, **options: Any) -> Tensor:
    return losses.clip_loss(x, texts, options.pop("logit_scale", 20.0), **options)


SIDE_LOSSES = {
    "proxy-anchor": SideLoss(losses.proxy_anchor_loss, _proxy_anchor, 32),
    "proxy-nca": SideLoss(losses.proxy_nca_loss, _proxy_nca, 2),
    "arcface": SideLoss(losses.arcface_loss, _arcface, 64),
    "cosface": SideLoss(losses.cosface_loss, _cosface, 64),
    "clip": SideLoss(clip_loss, _clip, 20),
}
for_every_side_loss = pytest.mark.parametrize("name", SIDE_LOSSES)
CLASS_LOSSES = ("proxy-nca", "arcface", "cosface")


def side_batch(name: str, rows: int = 24, depth: int = 8, **options: Any) -> list[Tensor]:
    """Embeddings, labels and the other matrix, of 7 rows or as many as there are embeddings."""
    generator = torch.Generator().manual_seed(rows + depth)
    dtype, device = options.get("dtype", torch.float64), options.get("device", "cpu")
    others = rows if name == "clip" else 7
    sides = [
        torch.randn(n, depth, generator=generator, dtype=torch.float64).to(device, dtype)
        for n in (rows, others)
    ]
    labels = torch.randint(0, 7, (rows,), generator=generator).to(device)
    return [sides[0].requires_grad_(), labels, sides[1].requires_grad_()]


def n_pairs(x: Tensor, labels: Tensor) -> Tensor:
    """N-pairs loss, a class after the other."""
    pairs = [
        (labels == label).nonzero().squeeze(1)[:2]
        for label in labels.unique()
        if (labels == label).sum() > 1
    ]
    if not pairs:
        return x.sum() * 0
    first, second = torch.stack(pairs).T
    return F.cross_entropy(unit(x)[first] @ unit(x)[second].T, torch.arange(len(pairs)))


def assert_near(ours: Tensor, truth: Tensor, digits: float = 1e-12, about: str = "") -> None:
    """Equal beside the largest entry, or 1."""
    assert ours.shape == truth.shape
    scale = max(1.0, truth.detach().abs().max().item() if truth.numel() else 0.0)
    torch.testing.assert_close(
        ours, truth, rtol=0, atol=digits * scale, msg=lambda words: f"{about} {words}"
    )
