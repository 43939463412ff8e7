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

from circle_kernels.autograd import (
    checked_pair_logsumexp,
    forward_and_keep,
    input_gradients,
    is_plain,
    is_traced,
)
from circle_kernels.backend_choice import resolve_backend
from circle_kernels.backends import cpu
from circle_kernels.formula import PairFormula

REDUCTIONS = ("mean", "mean_all", "sum", "none")
NO_SECOND_DERIVATIVE = (
    "circle_kernels: the loss cannot be differentiated twice, as a gradient penalty does; "
    "backend='reference' can, and so can pytorch-metric-learning's own CircleLoss for its adapter"
)


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
    at_once = _row_losses_at_once(lse_pos, lse_neg, reduction) if is_plain(lse_pos) else None
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


def reduced_row_losses(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool,
    skip_below: float,
    backend: str,
    reduction: str,
) -> Tensor:
    """The loss with one ``softplus`` per row, from checked arguments."""
    inputs = (embeddings, labels, ref_emb, ref_labels)
    if backend != "reference" and not is_traced(embeddings, backend):
        return _RowLosses.apply(
            *inputs, formula, bool(normalize), float(skip_below), backend, reduction
        )
    lse_pos, lse_neg = checked_pair_logsumexp(
        *inputs, formula=formula, normalize=normalize, skip_below=skip_below, backend=backend
    )
    return reduce_exponents(lse_pos + lse_neg, reduction)


def reduce_exponents(exponents: Tensor, reduction: str) -> Tensor:  # of (N,), a scalar or (N,)
    """``softplus`` of each row's exponent, reduced, in plain PyTorch.

    A row without positives or negatives has the exponent -inf, hence loss and gradient exactly 0.
    """
    losses = softplus(exponents)
    return losses if reduction == "none" else losses.sum() / rows_counted(exponents, reduction)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        formula: PairFormula,
        normalize: bool,
        skip_below: float,
        backend: str,
        reduction: str,
    ) -> Tensor:
        lse_pos, lse_neg = forward_and_keep(
            ctx, embeddings, labels, ref_emb, ref_labels, formula, normalize, skip_below, backend
        )
        loss, slopes = row_losses(lse_pos, lse_neg, reduction)
        # Made here and used in backward only, so it may live outside save_for_backward.
        ctx.slopes = slopes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad():
            grad_lse = ctx.slopes * grad_loss
            gradients: tuple[Tensor | None, ...] = input_gradients(ctx, saved, grad_lse, grad_lse)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = tuple(
                None if gradient is None else _NoSecondDerivative.apply(gradient, argument)
                for gradient, argument in zip(gradients, saved[:4], strict=True)
            )
        return (*gradients, *(None,) * 5)


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient as it is. torch's ``once_differentiable`` would call it a constant where what
    arrives from above is one, as for a loss that nothing was done to."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, argument: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_gradient: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
