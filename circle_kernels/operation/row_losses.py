"""``softplus(lse_pos + lse_neg)`` of every row and its reduction, as one node of the graph.

The same in plain PyTorch is what compilers see. In eager mode each node of the graph costs
microseconds, forward and backward, and so does each operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.choice import is_by_autograd
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.differentiable import computes_at_once, traced_loss
from circle_kernels.operation.eager import (
    forward_and_keep,
    input_gradients,
    is_traced,
    logsumexps,
    once,
)
from circle_kernels.operation.reductions import reduce_exponents, row_losses


def reduced_row_losses(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The loss of a checked batch with one ``softplus`` per row."""
    if not is_by_autograd(operation.backend):
        if not is_traced(batch, operation):
            call = (batch, operation, reduction, batch.requires_grad)
            return RowLosses.apply(batch.embeddings, batch.ref_emb, call)
        if computes_at_once(batch, reduction):
            return traced_loss(batch, operation, reduction)
    lse_pos, lse_neg = logsumexps(batch, operation)
    return reduce_exponents(lse_pos + lse_neg, reduction)


class RowLosses(torch.autograd.Function):
    """The loss of a batch; see :func:`reduced_row_losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        call: tuple[Batch, Operation, str, bool],  # both are the batch's, and whether to keep it
    ) -> Tensor:
        batch, operation, reduction, keep = call
        lse_pos, lse_neg = forward_and_keep(ctx, batch, operation, keep)
        loss, slopes = row_losses(ctx.module, lse_pos, lse_neg, reduction)
        # Made here and used in backward only, so it may live outside save_for_backward.
        ctx.slopes = slopes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        def gradients(saved: tuple[Any, ...], upstream: tuple[Tensor, ...]) -> tuple[Any, ...]:
            grad_lse = ctx.slopes * upstream[0]
            return input_gradients(ctx, saved, grad_lse, grad_lse)

        return (*once(ctx.saved_tensors, (grad_loss,), gradients), None)
