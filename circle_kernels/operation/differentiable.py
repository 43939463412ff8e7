"""The registered ops with their gradients, as compilers, tracers and ``torch.func`` take them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from circle_kernels.backends.addressable import under_transforms
from circle_kernels.backends.problem import Needs, Passed
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.registered import (
    BATCH,
    FORWARD,
    LABELS,
    OPERATION,
    SAVED_LAYOUT,
    at_once_op,
    backward_op,
    define,
    encode,
    forward_op,
    variable_numbers,
)


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arguments, keep_for_backward, _ = inputs
    ctx.save_for_backward(*arguments[: LABELS + 1], *output[2:])
    ctx.settings = arguments[LABELS + 1 :]
    ctx.kept = keep_for_backward
    ctx.mark_non_differentiable(*output[2:])


def _gradient(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor, *_: Any) -> tuple[Any, ...]:
    *inputs, saved, precision = ctx.saved_tensors
    if not ctx.kept:  # traced where no gradient was wanted, and run where one is
        saved, precision = forward_op(*inputs, *ctx.settings, True, SAVED_LAYOUT)[2:]
    gradients = _traced_gradients(
        (*inputs, *ctx.settings, precision),
        Passed(saved, grad_lse_pos, grad_lse_neg),
        Needs(ctx.needs_input_grad[0], ctx.needs_input_grad[2]),
    )
    return gradients[0], None, gradients[1], *(None,) * (len(ctx.settings) + LABELS)


def traced_gradients(
    batch: Batch,
    operation: Operation,
    passed: Passed,
    needs: Needs,
    precision: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of :func:`traced_logsumexps` as one op, in the forward pass's precision."""
    return _traced_gradients((*encode(batch, operation), precision), passed, needs)


def _traced_gradients(
    encoded: tuple[Any, ...], passed: Passed, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    grad_embeddings, grad_references = _Backward.apply(*encoded, *passed[:3], *needs)
    return (
        grad_embeddings if needs.embeddings else None,
        grad_references if needs.references else None,
    )


NO_SECOND_DERIVATIVE = (
    "circle_kernels: the loss cannot be differentiated twice, as a gradient penalty does; "
    "backend='reference' can, and so can pytorch-metric-learning's own CircleLoss for its adapter"
)


def no_second_derivative(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


def _one_by_one(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule of ``torch.func.vmap`` for an op: one call for each member of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        members = [
            op(
                *(
                    value if dim is None else value.select(dim, index)
                    for value, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        results = tuple(torch.stack(values) for values in zip(*members, strict=True))
        return results, (0,) * len(results)

    return rule


# For graphs that were traced where no gradient was wanted, or that lost the function around the op.
torch.library.register_autograd(forward_op, _gradient, setup_context=_keep_for_gradient)
torch.library.register_vmap(forward_op, _one_by_one(forward_op))
torch.library.register_vmap(backward_op, _one_by_one(backward_op))


class _Forward(torch.autograd.Function):
    """The forward op with its gradient."""

    generate_vmap_rule = True
    forward = staticmethod(forward_op)
    setup_context = staticmethod(_keep_for_gradient)
    backward = staticmethod(_gradient)


class _Backward(torch.autograd.Function):
    """The backward op, which cannot be differentiated."""

    generate_vmap_rule = True
    forward = staticmethod(backward_op)
    backward = staticmethod(no_second_derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept, since nothing is differentiated again."""


# The forward op with its gradient, as compilers find it, which do not look into autograd functions
# that are called by other names than these.
_differentiable_op = define(
    "pair_logsumexp",
    FORWARD,
    lambda *arguments: _Forward.apply(*arguments),
    whole=False,
)


class _AtOnce(torch.autograd.Function):
    """The loss, with gradients that are computed with it: a scalar multiplies them later."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        loss, *gradients = at_once_op(*arguments)
        ctx.needs = Needs(*arguments[-2:])
        ctx.others = len(arguments) - 3
        # The sides only for who differentiates again, to be told that this cannot be.
        sides = (arguments[0], arguments[2])
        ctx.save_for_backward(
            *gradients,
            *(side if needed else None for side, needed in zip(sides, ctx.needs, strict=True)),
        )
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        *gradients, embeddings, ref_emb = ctx.saved_tensors
        of_embeddings, of_references = (
            _Scaled.apply(gradient, grad_loss, embeddings, ref_emb) if needed else None
            for gradient, needed in zip(gradients, ctx.needs, strict=True)
        )
        return of_embeddings, None, of_references, *(None,) * ctx.others


class _Scaled(torch.autograd.Function):
    """A gradient times the upstream gradient, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grad_loss: Tensor, *sides: Tensor | None) -> Tensor:
        return gradient * grad_loss

    backward = staticmethod(no_second_derivative)


_differentiable_loss = define(
    "pair_loss",
    f"({BATCH}, {OPERATION}, str reduction, bool needs_embeddings, bool needs_references) "
    "-> Tensor",
    lambda *arguments: _AtOnce.apply(*arguments),
    whole=False,
)


def computes_at_once(embeddings: Tensor, ref_emb: Tensor | None, reduction: str) -> bool:
    """Whether a compiled step computes gradients with the loss, as one op instead of two.

    A compiler's graphs come in pairs, so that what is computed is used, and at a small batch an op
    costs as much as its kernel. Half types would lose gradients that are to be scaled up first.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not under_transforms()
        and torch.is_grad_enabled()
        and (embeddings.requires_grad or (ref_emb is not None and ref_emb.requires_grad))
        and reduction != "none"
        and embeddings.is_cpu
        and embeddings.dtype in (torch.float32, torch.float64)
    )


def traced_loss(batch: Batch, operation: Operation, reduction: str) -> Tensor:
    """The reduced loss of a checked batch, for which :func:`computes_at_once` holds."""
    sides = (batch.embeddings, batch.ref_emb)
    needs = (side is not None and side.requires_grad for side in sides)
    return _differentiable_loss(*encode(batch, operation), reduction, *needs)


def usual_loss(
    formula: str, tensors: tuple[Any, ...], rows: tuple[Any, ...], options: dict[str, Any]
) -> Tensor | None:
    """:func:`traced_loss` of what users give, unchecked, where it is what is usual; else None.

    Each name and each entry of a tuple that a compiler meets on its way through the checks it looks
    up again at every step, which costs a small one a twentieth.
    """
    embeddings, labels, ref_emb, ref_labels = tensors
    m, gamma, skip_below = options["m"], options["gamma"], options["skip_below"]
    flags = options.get("detach_weights", True), options["normalize"]
    scope, reduction, group = rows
    if (
        isinstance(embeddings, Tensor)
        and isinstance(labels, Tensor)
        and ref_emb is ref_labels is group is None
        and computes_at_once(embeddings, None, reduction)
        and (embeddings.dim(), labels.dim(), labels.dtype) == (2, 1, torch.int64)
        and labels.is_cpu
        and labels.shape[0] == embeddings.shape[0]
        and embeddings.shape[1] > 0
        and type(m) in (float, int)
        and type(gamma) in (float, int)
        and -1 < m < 1
        and 0 < gamma < 1e9
        and type(skip_below) is float
        and 0 <= skip_below < 1
        and type(flags[0]) is type(flags[1]) is bool
        and scope == "anchor"
        and reduction in ("mean", "mean_all", "sum")
        and options["backend"] in ("auto", "cpu")
    ):
        batch = (*tensors, None, None)
        numbers = variable_numbers(float(m), float(gamma))
        settings = (formula, *flags, skip_below, options["backend"], False, reduction)
        return _differentiable_loss(*batch, numbers, *settings, True, False)
    return None


def traced_logsumexps(batch: Batch, operation: Operation) -> tuple[Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` of a checked batch as one op, differentiable once."""
    _tell_flop_counters()
    op = _Forward.apply if under_transforms() else _differentiable_op
    lse_pos, lse_neg, *_ = op(*encode(batch, operation), batch.requires_grad, SAVED_LAYOUT)
    return lse_pos, lse_neg


def _forward_flops(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *_: Any, **__: Any
) -> int:
    """Of the product that the naive loss has, whatever part of it symmetry saves."""
    return 2 * embeddings.numel() * (embeddings if ref_emb is None else ref_emb).shape[0]


def _backward_flops(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any, **_: Any
) -> int:
    """The same of one product for each side that needs its gradient; in self mode there are two."""
    needs_embeddings, needs_references = arguments[-2:]
    products = 2 * needs_embeddings if ref_emb is None else needs_embeddings + needs_references
    return products * _forward_flops(embeddings, labels, ref_emb)


def _flops_at_once(*arguments: Any, **_: Any) -> int:
    return _forward_flops(*arguments) + _backward_flops(*arguments)


def _tell_flop_counters() -> None:
    """Give both formulas to the counters at work: importing theirs for it would import Triton."""
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None or torch.compiler.is_compiling():
        return
    counters = [
        mode.counter
        for mode in _python_dispatch._get_current_dispatch_mode_stack()
        if hasattr(mode, "counter")
    ]
    for each in (counting, *(c for c in counters if isinstance(c, counting.FlopCounterMode))):
        each.flop_registry.setdefault(forward_op.overloadpacket, _forward_flops)
        each.flop_registry.setdefault(backward_op.overloadpacket, _backward_flops)
        each.flop_registry.setdefault(at_once_op.overloadpacket, _flops_at_once)
