"""From both log-sum-exps of each row to the loss: ``softplus`` of their sum, reduced."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends.addressable import is_watched

REDUCTIONS = ("mean", "mean_all", "sum", "none")
# Of pytorch-metric-learning: the mean over rows whose loss is greater than 0, which NaN is not; or
# NaN where there is nothing but NaN.
MEAN_NONZERO = "mean_nonzero"


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; the default threshold of 20 would cost float64 its last five digits."""
    return F.softplus(x, threshold=50.0)


def rows_counted(exponents: Tensor, reduction: str) -> Tensor | int:
    """What a sum over rows is divided by. Rows without positives or negatives have ``-inf``."""
    if reduction == "mean":
        return (exponents != -math.inf).sum().clamp_min(1)
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
        counted = losses > 0
        slopes = slopes.masked_fill(~counted, 0) / counted.sum().clamp_min(1)
        return _mean_nonzero(losses), slopes
    count = rows_counted(exponents, reduction)
    return losses.sum() / count, slopes / count


def _mean_nonzero(losses: Tensor) -> Tensor:
    counted = losses > 0
    mean = losses.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)
    return mean.masked_fill(~counted.any() & losses.isnan().any(), math.nan)


def reduce_exponents(exponents: Tensor, reduction: str) -> Tensor:  # of (N,), a scalar or (N,)
    """``softplus`` of each row's exponent, reduced, in plain PyTorch.

    A row without positives or negatives has the exponent -inf, hence loss and gradient exactly 0.
    """
    losses = softplus(exponents)
    if reduction == MEAN_NONZERO:
        return _mean_nonzero(losses)
    return losses if reduction == "none" else losses.sum() / rows_counted(exponents, reduction)
