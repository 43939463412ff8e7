"""``softplus(lse_pos + lse_neg)`` of every row and its reduction, as one node of the graph.

The same in plain PyTorch is what compilers see. In eager mode each node of the graph costs
microseconds, forward and backward, and so does each operation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends.addressable import is_watched
from circle_kernels.backends.choice import is_by_autograd
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import (
    forward_and_keep,
    input_gradients,
    is_traced,
    logsumexps,
    once,
)

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


def reduced_row_losses(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The loss of a checked batch with one ``softplus`` per row."""
    if not is_by_autograd(operation.backend) and not is_traced(batch, operation):
        return RowLosses.apply(*batch.tensors, operation, reduction, batch.requires_grad)
    lse_pos, lse_neg = logsumexps(batch, operation)
    return reduce_exponents(lse_pos + lse_neg, reduction)


def reduce_exponents(exponents: Tensor, reduction: str) -> Tensor:  # of (N,), a scalar or (N,)
    """``softplus`` of each row's exponent, reduced, in plain PyTorch.

    A row without positives or negatives has the exponent -inf, hence loss and gradient exactly 0.
    """
    losses = softplus(exponents)
    if reduction == MEAN_NONZERO:
        return _mean_nonzero(losses)
    return losses if reduction == "none" else losses.sum() / rows_counted(exponents, reduction)


class RowLosses(torch.autograd.Function):
    """The loss of a batch; see :func:`reduced_row_losses`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, operation, reduction, keep = arguments
        lse_pos, lse_neg = forward_and_keep(ctx, Batch(*tensors), operation, keep)
        loss, slopes = row_losses(ctx.module, lse_pos, lse_neg, reduction)
        # Made here and used in backward only, so it may live outside save_for_backward.
        ctx.slopes = slopes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        def gradients(saved: tuple[Any, ...], upstream: tuple[Tensor, ...]) -> tuple[Any, ...]:
            grad_lse = ctx.slopes * upstream[0]
            return input_gradients(ctx, saved, grad_lse, grad_lse)

        return (*once(ctx.saved_tensors, (grad_loss,), gradients), None, None, None)
