"""The fused operation as registered ops, which compilers, exporters and tracers see whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backend_choice import load_backend, run_backward, run_forward
from circle_kernels.backends.interface import PairProblem
from circle_kernels.formula import PairFormula, formula_from_parameters

# Raised when a backend saves something of another shape. torch keeps compiled graphs on disk by the
# arguments of their ops: with this among them, none is found that an earlier version compiled. (Not
# as a default, which torch leaves out.)
SAVED_LAYOUT = 7


def under_transforms() -> bool:
    """Whether ``torch.func`` is at work, whose tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def traced_pair_logsumexp(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    formula: PairFormula,
    normalize: bool,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """:func:`circle_kernels.pair_logsumexp` of checked arguments as one op, differentiable once."""
    keep = torch.is_grad_enabled() and any(
        value is not None and value.requires_grad for value in (embeddings, ref_emb)
    )
    inputs = (embeddings, labels, ref_emb, ref_labels)
    encoded = (formula.name, formula.parameters(), formula.detach_weights)
    operation = _ForwardTransformed.apply if under_transforms() else _forward_op
    lse_pos, lse_neg, _ = operation(
        *inputs, *encoded, normalize, skip_below, backend, keep, SAVED_LAYOUT
    )
    return lse_pos, lse_neg


def _problem(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    keep_for_backward: bool = True,
) -> PairProblem:
    """The problem that the arguments of both ops describe."""
    rebuilt = formula_from_parameters(formula, parameters, detach_weights)
    return PairProblem(
        embeddings, labels, ref_emb, ref_labels, rebuilt, normalize, skip_below, keep_for_backward
    )


def _forward(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    keep_for_backward: bool,
    saved_layout: int,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
        keep_for_backward,
    )
    return run_forward(problem, backend)


def _backward(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    lse_pos: Tensor,
    lse_neg: Tensor,
    saved: Tensor,
    grad_lse_pos: Tensor,
    grad_lse_neg: Tensor,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    needs_embeddings: bool,
    needs_references: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for both sides; an empty tensor stands for one that is not needed."""
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
    )
    grad_embeddings, grad_references = run_backward(
        problem,
        lse_pos,
        lse_neg,
        saved,
        grad_lse_pos,
        grad_lse_neg,
        backend,
        needs_embeddings,
        needs_references,
    )
    return (
        embeddings.new_empty(0) if grad_embeddings is None else grad_embeddings,
        embeddings.new_empty(0) if grad_references is None else grad_references,
    )


_forward_op = torch.library.custom_op(
    "circle_kernels::pair_logsumexp_forward", _forward, mutates_args=()
)
_backward_op = torch.library.custom_op(
    "circle_kernels::pair_logsumexp_backward", _backward, mutates_args=()
)


@_forward_op.register_fake
def _forward_fake(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: str,
    parameters: list[float],
    detach_weights: bool,
    normalize: bool,
    skip_below: float,
    backend: str,
    keep_for_backward: bool,
    saved_layout: int,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        parameters,
        detach_weights,
        normalize,
        skip_below,
        keep_for_backward,
    )
    rows = embeddings.shape[0]
    lse_pos, lse_neg = (embeddings.new_empty(rows, dtype=problem.result_dtype) for _ in range(2))
    return lse_pos, lse_neg, lse_pos.new_empty(load_backend(backend, problem).saved_shape(problem))


@_backward_op.register_fake
def _backward_fake(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    needs_embeddings, needs_references = arguments[-2:]
    return (
        embeddings.new_empty(embeddings.shape if needs_embeddings else 0),
        ref_emb.new_empty(ref_emb.shape)
        if needs_references and ref_emb is not None
        else embeddings.new_empty(0),
    )


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arguments, keep_for_backward, _ = inputs
    ctx.save_for_backward(*arguments[:4], *output)
    ctx.settings = arguments[4:]
    ctx.kept = keep_for_backward
    ctx.mark_non_differentiable(output[2])


def _gradient(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor, _: Any) -> tuple[Any, ...]:
    *inputs, lse_pos, lse_neg, saved = ctx.saved_tensors
    if not ctx.kept:  # traced where no gradient was wanted, and run where one is
        lse_pos, lse_neg, saved = _forward_op(*inputs, *ctx.settings, True, SAVED_LAYOUT)
    needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    operation = _BackwardTransformed.apply if under_transforms() else _backward_op
    grad_embeddings, grad_references = operation(
        *inputs, lse_pos, lse_neg, saved, grad_lse_pos, grad_lse_neg, *ctx.settings, *needs
    )
    return (
        grad_embeddings if needs[0] else None,
        None,
        grad_references if needs[1] else None,
        *(None,) * 9,
    )


def _no_second_derivative(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    raise RuntimeError("circle_kernels: the loss cannot be differentiated twice")


_forward_op.register_autograd(_gradient, setup_context=_keep_for_gradient)
_backward_op.register_autograd(_no_second_derivative)


class _ForwardTransformed(torch.autograd.Function):
    """The forward op for ``torch.func``, which does not know gradients that were registered."""

    generate_vmap_rule = True
    forward = staticmethod(_forward_op)
    setup_context = staticmethod(_keep_for_gradient)
    backward = staticmethod(_gradient)


class _BackwardTransformed(torch.autograd.Function):
    """The backward op for ``torch.func``."""

    generate_vmap_rule = True
    forward = staticmethod(_backward_op)
    backward = staticmethod(_no_second_derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept, since nothing is differentiated again."""
