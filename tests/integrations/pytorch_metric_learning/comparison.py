"""The adapter beside the library's own CircleLoss, on the same batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.regimes import REGIMES
from tests.support.yardstick import Yardstick

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners, reducers

from circle_kernels.integrations.pytorch_metric_learning import CircleLoss

MINERS: dict[str, Callable[[], miners.BaseMiner]] = {
    "labels": lambda: None,
    "multi-similarity": miners.MultiSimilarityMiner,
    "batch-hard": miners.BatchHardMiner,
    "triplet-margin": miners.TripletMarginMiner,
    "pair-margin": lambda: miners.PairMarginMiner(pos_margin=0.2, neg_margin=1.5),
}


def batch(regime: str, rows: int = 96, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    embeddings, labels = REGIMES[regime](rows, 32, torch.Generator().manual_seed(rows))
    return embeddings.to(dtype), labels


def rows_and_gradient(
    loss_class: type, embeddings: Tensor, labels: Tensor | None, *arguments, **settings
) -> tuple[Tensor, Tensor]:
    """Every row's loss, and the gradient of the default reduction."""
    rows = loss_class(reducer=reducers.DoNothingReducer(), **settings)(
        embeddings, labels, *arguments
    )["loss"]["losses"]
    leaf = embeddings.detach().requires_grad_()
    loss_class(**settings)(leaf, labels, *arguments).backward()
    rows = torch.as_tensor(rows, dtype=embeddings.dtype).detach()
    return rows, leaf.grad


def assert_same(embeddings: Tensor, labels: Tensor | None, *arguments, **settings) -> None:
    """Rows to 1e-5; gradients as near to the float64 truth as twice the library's own error.

    A row's loss far below 1 is exp of a difference of logits, and those logits' rounding alone is
    more than 1e-5 of it, in the library as well.
    """
    ours, our_gradient = rows_and_gradient(CircleLoss, embeddings, labels, *arguments, **settings)
    rows, gradient = rows_and_gradient(
        losses.CircleLoss, embeddings, labels, *arguments, **settings
    )
    wide = [each.double() if torch.is_tensor(each) else each for each in arguments[1:2]]
    _, truth = rows_and_gradient(
        losses.CircleLoss,
        embeddings.double(),
        labels,
        *arguments[:1],
        *wide,
        *arguments[2:],
        **settings,
    )
    torch.testing.assert_close(ours, rows, rtol=1e-5, atol=1e-8)
    eps = torch.finfo(embeddings.dtype).eps
    gamma = settings.get("gamma", 80)
    # Where embeddings are equal, terms of this size cancel to 0; and in float64, where the truth is
    # no better than we are, what is left of them is rounding.
    cancels = bool((embeddings == embeddings[0]).all()) or embeddings.dtype == torch.float64
    scale = cancels * 4 * gamma / embeddings.norm(dim=1).min().item()
    Yardstick(truth, gradient).assert_close(our_gradient, eps, gamma, scale)
