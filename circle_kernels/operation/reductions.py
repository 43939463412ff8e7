"""From both log-sum-exps of each row to the loss: ``softplus`` of their sum, reduced."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends.addressable import is_watched
from circle_kernels.logsumexp import present_logsumexp

# Over rows whose loss is not 0, as the reducer of pytorch-metric-learning's loss has it.
MEAN_NONZERO = "mean_nonzero"
SCALARS = ("mean", "mean_all", "sum", MEAN_NONZERO)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; the default threshold of 20 would cost float64 its last five digits."""
    return F.softplus(x, threshold=50.0)


def rows_counted(exponents: Tensor, losses: Tensor, reduction: str) -> Tensor | int:
    """What a sum over rows is divided by. Rows without positives or negatives have ``-inf``."""
    if reduction == "mean":
        return (exponents != -math.inf).sum().clamp_min(1)
    if reduction == MEAN_NONZERO:
        return (losses != 0).sum().clamp_min(1)
    return max(exponents.shape[0], 1) if reduction == "mean_all" else 1


def row_losses(
    module: Any,  # the backend that serves the rows
    lse_pos: Tensor,  # (N,)
    lse_neg: Tensor,  # (N,)
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative (N,) with respect to either log-sum-exp of each row."""
    # Who watches what is done to tensors has to see it.
    if hasattr(module, "row_losses") and not is_watched():
        at_once = module.row_losses(lse_pos, lse_neg, reduction)
        if at_once is not None:
            return at_once
    exponents = lse_pos + lse_neg
    losses = softplus(exponents)
    slopes = torch.sigmoid(exponents)  # of -inf 0 exactly
    if reduction == "none":
        return losses, slopes
    if reduction == MEAN_NONZERO:
        slopes = slopes.masked_fill(losses == 0, 0)
    count = rows_counted(exponents, losses, reduction)
    return losses.sum() / count, slopes / count


def reduce_exponents(exponents: Tensor, reduction: str) -> Tensor:  # of (N,), a scalar or (N,)
    """``softplus`` of each row's exponent, reduced, in plain PyTorch.

    A row without positives or negatives has the exponent -inf, hence loss and gradient exactly 0.
    """
    losses = softplus(exponents)
    return reduce_losses(losses, rows_counted(exponents, losses, reduction), reduction)


def reduce_losses(losses: Tensor, number: Tensor | int, reduction: str) -> Tensor:
    """Losses (N,) as one, or as they are; ``number`` is what a mean divides their sum by."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (number.clamp_min(1) if isinstance(number, Tensor) else max(number, 1))


def loss_of_sets(lse_pos: Tensor, lse_neg: Tensor, *, in_self_mode: bool) -> Tensor:
    """``softplus`` of the sums over all pairs, a scalar, from those (K,) over pairs of some."""
    # In self mode every unordered pair stands in two rows.
    times_counted = 2 if in_self_mode else 1
    return softplus(
        present_logsumexp(lse_pos, dim=0)
        + present_logsumexp(lse_neg, dim=0)
        - 2 * math.log(times_counted)
    )
