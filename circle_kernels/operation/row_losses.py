"""``softplus(lse_pos + lse_neg)`` of every row and its reduction, as one node of the graph.

The same in plain PyTorch is what compilers see. In eager mode each node of the graph costs
microseconds, forward and backward, and so does each operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.addressable import all_addressable, materialized
from circle_kernels.backends.choice import is_by_autograd
from circle_kernels.backends.problem import Needs, PairProblem
from circle_kernels.backends.saved_bytes import HOOKS, as_bytes, from_bytes
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.differentiable import computes_at_once, traced_loss
from circle_kernels.operation.eager import (
    begin,
    forward_and_keep,
    input_gradients,
    is_traced,
    logsumexps,
    once,
)
from circle_kernels.operation.reductions import reduce_exponents, row_losses

# Up to so many multiplications of a product, a backward pass of its own takes the host longer than
# the arithmetic takes: who never asks for the gradient loses less than who does gains.
_SMALL = 2**20


def reduced_row_losses(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The loss of a checked batch with one ``softplus`` per row."""
    if not is_by_autograd(operation.backend):
        if not is_traced(batch, operation):
            call = (batch, operation, reduction, batch.requires_grad)
            return RowLosses.apply(batch.embeddings, batch.ref_emb, call)
        if computes_at_once(batch.embeddings, batch.ref_emb, reduction):
            return traced_loss(batch, operation, reduction)
    lse_pos, lse_neg = logsumexps(batch, operation)
    return reduce_exponents(lse_pos + lse_neg, reduction)


class RowLosses(torch.autograd.Function):
    """The loss of a batch; see :func:`reduced_row_losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,  # the batch's, as is the next: what autograd has to see
        ref_emb: Tensor | None,
        call: tuple[Batch, Operation, str, bool],  # with the reduction, and if backward can follow
    ) -> Tensor:
        batch, operation, reduction, keep = call
        problem, module = begin(batch, operation, keep)
        ctx.at_once = keep and _is_small(problem, module, reduction)
        if ctx.at_once:
            ctx.needs = Needs(*ctx.needs_input_grad[:2])
            loss, gradients = module.loss_and_gradients(problem, reduction, ctx.needs)
            # The sides only for who differentiates again, to be told that this cannot be.
            sides = (embeddings, ref_emb)
            ctx.shapes = [None if each is None else each.shape for each in gradients]
            ctx.save_for_backward(
                *(side if needed else None for side, needed in zip(sides, ctx.needs, strict=True)),
                *(None if each is None else as_bytes(each) for each in gradients),
            )
            return loss
        lse_pos, lse_neg = forward_and_keep(ctx, operation, problem, module)
        loss, slopes = row_losses(module, lse_pos, lse_neg, reduction)
        # Made here and used in backward only, so it may live outside save_for_backward.
        ctx.slopes = slopes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        def gradients(saved: tuple[Any, ...], upstream: tuple[Tensor, ...]) -> tuple[Any, ...]:
            if ctx.at_once:
                scale = upstream[0] if all_addressable(*upstream) else materialized(upstream[0])
                return tuple(
                    None if each is None else _kept_gradient(each, shape, scale.dtype) * scale
                    for each, shape in zip(saved[2:], ctx.shapes, strict=True)
                )
            grad_lse = ctx.slopes * upstream[0]
            return input_gradients(ctx, saved, grad_lse, grad_lse)

        return (*once(ctx.saved_tensors, (grad_loss,), gradients), None)


def _kept_gradient(saved: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A gradient (N, D) from its bytes.

    Raises:
        RuntimeError: something else came back.
    """
    wanted = (shape[0], shape[1] * dtype.itemsize)
    if saved.dtype != torch.uint8 or saved.shape != wanted:
        raise RuntimeError(
            f"circle_kernels: the backward pass wants a gradient's bytes of shape {wanted}, got "
            f"{saved.dtype} of shape {tuple(saved.shape)}; {HOOKS}"
        )
    return from_bytes(saved, dtype)


def _is_small(problem: PairProblem, module: Any, reduction: str) -> bool:
    """Whether gradients are computed with the loss, to be multiplied in the backward pass.

    Half types would lose gradients that are to be scaled up first.
    """
    return (
        hasattr(module, "loss_and_gradients")
        and reduction != "none"
        and problem.embeddings.dtype == problem.result_dtype
        and 0 < problem.embeddings.numel() * problem.columns.shape[0] <= _SMALL
    )
