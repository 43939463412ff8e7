"""``gamma`` as a tensor that may have a gradient: the scale of logits, learned.

Log-sum-exps are computed with the number in it; what their derivative with respect to it is takes
one more walk over the pairs, in the backward pass, where it is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends import tiled
from circle_kernels.backends.choice import behind_the_gate, serving, without_autocast
from circle_kernels.backends.problem import PairProblem, Passed
from circle_kernels.operation.batch import Batch, Operation, owned
from circle_kernels.operation.differentiable import no_second_derivative
from circle_kernels.operation.registered import (
    BATCH,
    LABELS,
    OPERATION,
    decode,
    decode_precision,
    define,
    encode,
    encode_precision,
)
from circle_kernels.precision import float32_precision


def with_scale_gradient(
    logsumexps: tuple[Tensor, Tensor],  # (n,) of the batch's rows
    batch: Batch,
    operation: Operation,
) -> tuple[Tensor, Tensor]:
    """The same log-sum-exps, of which the operation's scale gets its gradient, too."""
    return _differentiable_op(*logsumexps, operation.scale, *encode(batch, operation))


def _scale_gradient(*arguments: Any) -> Tensor:  # ()
    """``dL/dgamma`` from log-sum-exps and their gradients."""
    batch, operation, (precision, lse_pos, lse_neg, grad_lse_pos, grad_lse_neg) = decode(arguments)
    problem = operation.problem(batch, precision=decode_precision(precision))
    if problem.is_empty:
        return lse_pos.new_zeros(())
    module = _serving(problem, operation.backend)
    with without_autocast(batch.embeddings.device.type):
        saved = module.save(problem, lse_pos, lse_neg)
        # Of an empty set nothing is counted, whatever comes from above.
        upstream = (
            grad_lse_pos.masked_fill(lse_pos == -torch.inf, 0),
            grad_lse_neg.masked_fill(lse_neg == -torch.inf, 0),
        )
        total = module.scale_gradients(problem, Passed(saved, *upstream))
    return total.sum() / operation.formula.gamma


def _serving(problem: PairProblem, backend: str) -> Any:
    module = behind_the_gate(serving(problem, backend), backend, problem.named_tensors)
    return module if hasattr(module, "scale_gradients") else tiled


_gradient_op = define(
    "pair_scale_gradient",
    f"({BATCH}, {OPERATION}, Tensor precision, Tensor lse_pos, Tensor lse_neg, "
    "Tensor grad_lse_pos, Tensor grad_lse_neg) -> Tensor",
    _scale_gradient,
    whole=True,
)


@torch.library.register_fake("circle_kernels::pair_scale_gradient")
def _gradient_fake(*arguments: Any) -> Tensor:
    return arguments[-1].new_empty(())


class _WithScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, lse_pos: Tensor, lse_neg: Tensor, scale: Tensor, *encoded: Any
    ) -> tuple[Tensor, Tensor]:
        tensors = (owned(each) if isinstance(each, Tensor) else each for each in encoded[:LABELS])
        precision = encode_precision(float32_precision(encoded[0].device.type))
        ctx.save_for_backward(lse_pos, lse_neg, *tensors, encoded[LABELS], precision)
        ctx.settings, ctx.like = encoded[LABELS + 1 :], scale
        return lse_pos.clone(), lse_neg.clone()

    @staticmethod
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        lse_pos, lse_neg, *encoded, precision = ctx.saved_tensors
        of_scale = None
        if ctx.needs_input_grad[2]:
            arguments = (*encoded, *ctx.settings, precision, lse_pos, lse_neg)
            of_scale = _Gradient.apply(*arguments, grad_lse_pos, grad_lse_neg)
            of_scale = of_scale.to(ctx.like.device, ctx.like.dtype)
        others = (None,) * (len(encoded) + len(ctx.settings))
        upstream = grad_lse_pos, grad_lse_neg
        if torch.is_grad_enabled():
            # The embeddings' gradient depends on the scale, too, which a backend that can be
            # differentiated again holds constant.
            upstream = _Upstream.apply(*upstream, ctx.like)
        return *upstream, of_scale, *others


class _Upstream(torch.autograd.Function):
    """Gradients of log-sum-exps as they are, which cannot be differentiated."""

    backward = staticmethod(no_second_derivative)

    @staticmethod
    def forward(
        ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return grad_lse_pos.clone(), grad_lse_neg.clone()


class _Gradient(torch.autograd.Function):
    """The gradient op, which cannot be differentiated."""

    backward = staticmethod(no_second_derivative)

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return _gradient_op(*arguments)


# As compilers find it: they do not look into autograd functions that are called by other names.
_differentiable_op = define(
    "pair_logsumexp_with_scale",
    f"(Tensor lse_pos, Tensor lse_neg, Tensor scale, {BATCH}, {OPERATION}) -> (Tensor, Tensor)",
    lambda *arguments: _WithScale.apply(*arguments),
    whole=False,
)
