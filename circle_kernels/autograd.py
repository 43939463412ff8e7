"""``pair_logsumexp``: the fused operation and its gradient.

Everything above this module is ordinary PyTorch on vectors of length N; everything below it is a
backend's two functions (see backends/interface.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.arguments import check_choice, check_pair_inputs, check_skip_below
from circle_kernels.backend_choice import (
    BACKENDS,
    load_backend,
    resolve_backend,
    run_backward,
    run_forward,
)
from circle_kernels.backends.interface import PairProblem, result_dtype
from circle_kernels.formula import FORMULAS, PairFormula, formula_from_parameters
from circle_kernels.reference import pair_logsumexp_reference

# Raised when a backend saves something of another shape. torch keeps compiled graphs on disk by the
# arguments of their ops: with this among them, none is found that an earlier version compiled. (Not
# as a default, which torch leaves out.)
SAVED_LAYOUT = 5


def pair_logsumexp(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool = True,
    skip_below: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the pair logits of each row, over its positives and over its negatives.

    With ``s_ij`` the cosine similarity of embedding i and reference j, computes for every row

        ``lse_pos_i = log sum_{j: label_j == label_i} exp z_p(s_ij)``
        ``lse_neg_i = log sum_{j: label_j != label_i} exp z_n(s_ij)``

    without storing the (N, M) similarities. These are the two sums inside Eq. 1 and Eq. 6 of
    Sun et al., CVPR 2020 (arXiv 2002.10857).

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64.
        labels: (N,) integers, any values.
        ref_emb: (M, D) references, same dtype and device. Without them the batch is compared with
            itself and an embedding is not compared with itself.
        ref_labels: (M,) integers.
        formula: the pair logits, for example :class:`circle_kernels.CircleFormula`.
        normalize: ``False`` takes plain inner products instead of cosines.
        skip_below: share of a row's total weight that a backend may leave out of the gradient to
            save work, in [0, 1); 0 is exact. See :func:`circle_kernels.circle_loss`.
        backend: ``"auto"``, ``"triton"``, ``"cpu"``, ``"tiled"`` or ``"reference"``; see
            :func:`available_backends`.

    Returns:
        ``(lse_pos, lse_neg)``, each (N,), float32 (float64 for float64 input), ``-inf`` where the
        row has no such pair. Differentiable once with respect to both sets of embeddings;
        gradients come in the inputs' dtype. A NaN or infinity in an embedding makes every
        log-sum-exp that saw it NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
        RuntimeError: the backend asked for cannot serve these tensors; or a second derivative.
    """
    labels, ref_labels = check_operation(
        embeddings, labels, ref_emb, ref_labels, formula, skip_below, backend
    )
    if backend == "reference":
        dtype = result_dtype(embeddings.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            lse_pos, lse_neg = pair_logsumexp_reference(
                embeddings, labels, ref_emb, ref_labels, formula=formula, normalize=normalize
            )
        return lse_pos.to(dtype), lse_neg.to(dtype)
    return _PairLogSumExp.apply(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula,
        bool(normalize),
        float(skip_below),
        backend,
    )


def check_operation(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: PairFormula,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """Check the fused operation's arguments; both label tensors as it takes them."""
    labels, ref_labels = check_pair_inputs(embeddings, labels, ref_emb, ref_labels)
    if type(formula) not in FORMULAS.values():
        wanted = " or ".join(known.__name__ for known in FORMULAS.values())
        raise TypeError(f"formula must be a {wanted}, got {type(formula).__name__} {formula!r}")
    check_skip_below(skip_below)
    check_choice("backend", backend, BACKENDS)
    return labels, ref_labels


class _PairLogSumExp(torch.autograd.Function):
    """Ties a backend's forward to its backward; keeps the inputs and vectors, no matrix."""

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
    ) -> tuple[Tensor, Tensor]:
        inputs = (embeddings, labels, ref_emb, ref_labels)
        if not is_traced(embeddings, backend):
            return forward_and_keep(ctx, *inputs, formula, normalize, skip_below, backend)
        lse_pos, lse_neg, saved = _forward_op(
            *inputs, *_encode(formula), normalize, skip_below, backend, _keeps(ctx), SAVED_LAYOUT
        )
        ctx.save_for_backward(*inputs, lse_pos, lse_neg, saved)
        ctx.settings = (formula, normalize, skip_below)
        ctx.backend = backend
        return lse_pos, lse_neg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        if not is_traced(ctx.saved_tensors[0], ctx.backend):
            gradients = input_gradients(ctx, grad_lse_pos, grad_lse_neg)
            return (*gradients, *(None,) * 4)
        formula, normalize, skip_below = ctx.settings
        needs_embeddings, needs_references = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        grad_embeddings, grad_references = _backward_op(
            *ctx.saved_tensors,
            grad_lse_pos,
            grad_lse_neg,
            *_encode(formula),
            normalize,
            skip_below,
            ctx.backend,
            needs_embeddings,
            needs_references,
        )
        return (
            grad_embeddings if needs_embeddings else None,
            None,
            grad_references if needs_references else None,
            *(None,) * 5,
        )


def _keeps(ctx: Any) -> bool:
    """Whether a backward pass can follow."""
    return ctx.needs_input_grad[0] or ctx.needs_input_grad[2]


def forward_and_keep(
    ctx: Any,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: PairFormula,
    normalize: bool,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Both log-sum-exps; ``ctx`` gets what :func:`input_gradients` needs."""
    inputs = (embeddings, labels, ref_emb, ref_labels)
    problem = PairProblem(*inputs, formula, normalize, skip_below, _keeps(ctx))
    lse_pos, lse_neg, saved = run_forward(problem, backend)
    ctx.save_for_backward(*inputs, lse_pos, lse_neg, saved)
    ctx.settings = (formula, normalize, skip_below)
    ctx.backend = backend
    return lse_pos, lse_neg


def input_gradients(
    ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor
) -> tuple[Tensor | None, None, Tensor | None, None]:
    """Gradients of embeddings, labels, ref_emb and ref_labels, where they are needed."""
    *inputs, lse_pos, lse_neg, saved = ctx.saved_tensors
    needs_embeddings, needs_references = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    grad_embeddings, grad_references = run_backward(
        PairProblem(*inputs, *ctx.settings),
        lse_pos,
        lse_neg,
        saved,
        grad_lse_pos,
        grad_lse_neg,
        ctx.backend,
        needs_embeddings,
        needs_references,
    )
    return (
        grad_embeddings if needs_embeddings else None,
        None,
        grad_references if needs_references else None,
        None,
    )


def is_traced(embeddings: Tensor, backend: str) -> bool:
    """Whether the operation has to be one registered op.

    Compilers must not look inside the kernels; and the C++ kernel reads memory, which fake tensors
    do not have and of which tracers see nothing. In eager mode a registered op would only add tens
    of microseconds to each call.
    """
    if torch.compiler.is_compiling():
        return True
    if is_plain(embeddings):
        return False
    return resolve_backend(backend, embeddings.device, embeddings.dtype) == "cpu"


def is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, and nobody who watches what is done to them."""
    return type(tensor) in (Tensor, Parameter) and not is_in_torch_dispatch_mode()


def _encode(formula: PairFormula) -> tuple[str, list[float], bool]:
    """A formula as op arguments; :func:`formula_from_parameters` is the way back."""
    return formula.name, formula.parameters(), formula.detach_weights


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
