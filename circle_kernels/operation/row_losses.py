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
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.backends import cpu
from circle_kernels.backends.choice import resolve_backend
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import (
    forward_and_keep,
    input_gradients,
    is_traced,
    logsumexps,
    once,
)

REDUCTIONS = ("mean", "mean_all", "sum", "none")


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; the default threshold of 20 would cost float64 its last five digits."""
    return F.softplus(x, threshold=50.0)


def rows_counted(exponents: Tensor, reduction: str) -> Tensor | int:
    """What a sum over rows is divided by. Rows without positives or negatives have ``-inf``."""
    if reduction == "mean":
        return (exponents != -math.inf).sum().clamp_min(1)
    return max(exponents.shape[0], 1) if reduction == "mean_all" else 1


def row_losses(
    lse_pos: Tensor,  # (N,)
    lse_neg: Tensor,  # (N,)
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative (N,) with respect to either log-sum-exp of each row."""
    # Who watches what is done to tensors has to see it.
    at_once = None
    if not is_in_torch_dispatch_mode():
        at_once = _row_losses_at_once(lse_pos, lse_neg, reduction)
    if at_once is not None:
        return at_once
    exponents = lse_pos + lse_neg
    losses = softplus(exponents)
    slopes = torch.sigmoid(exponents)  # of -inf 0 exactly
    if reduction == "none":
        return losses, slopes
    count = rows_counted(exponents, reduction)
    return losses.sum() / count, slopes / count


def _row_losses_at_once(
    lse_pos: Tensor, lse_neg: Tensor, reduction: str
) -> tuple[Tensor, Tensor] | None:
    """The same in one call or launch, where there is code for it."""
    if lse_pos.device.type == "cpu":
        return cpu.row_losses(lse_pos, lse_neg, reduction)
    if resolve_backend("auto", lse_pos.device, lse_pos.dtype) != "triton":
        return None
    from circle_kernels.backends.triton import row_losses

    return row_losses.row_losses(lse_pos, lse_neg, reduction)


def reduced_row_losses(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The loss of a checked batch with one ``softplus`` per row."""
    if operation.backend != "reference" and not is_traced(batch, operation.backend):
        return _RowLosses.apply(*batch, operation, reduction, batch.requires_grad)
    lse_pos, lse_neg = logsumexps(batch, operation)
    return reduce_exponents(lse_pos + lse_neg, reduction)


def reduce_exponents(exponents: Tensor, reduction: str) -> Tensor:  # of (N,), a scalar or (N,)
    """``softplus`` of each row's exponent, reduced, in plain PyTorch.

    A row without positives or negatives has the exponent -inf, hence loss and gradient exactly 0.
    """
    losses = softplus(exponents)
    return losses if reduction == "none" else losses.sum() / rows_counted(exponents, reduction)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, operation, reduction, keep = arguments
        lse_pos, lse_neg = forward_and_keep(ctx, Batch(*tensors), operation, keep)
        loss, slopes = row_losses(lse_pos, lse_neg, reduction)
        # Made here and used in backward only, so it may live outside save_for_backward.
        ctx.slopes = slopes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        def gradients(saved: tuple[Any, ...], upstream: tuple[Tensor, ...]) -> tuple[Any, ...]:
            grad_lse = ctx.slopes * upstream[0]
            return input_gradients(ctx, saved, grad_lse, grad_lse)

        return (*once(ctx.saved_tensors, (grad_loss,), gradients), None, None, None)
