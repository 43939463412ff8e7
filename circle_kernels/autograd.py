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

from circle_kernels.arguments import (
    check_choice,
    check_flag,
    check_pair_inputs,
    check_skip_below,
)
from circle_kernels.backend_choice import BACKENDS, resolve_backend, run_backward, run_forward
from circle_kernels.backends.interface import PairProblem, result_dtype
from circle_kernels.formula import FORMULAS, PairFormula
from circle_kernels.ops import traced_pair_logsumexp, under_transforms
from circle_kernels.reference import pair_logsumexp_reference


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
    check_flag("normalize", normalize)
    labels, ref_labels = check_operation(
        embeddings, labels, ref_emb, ref_labels, formula, skip_below, backend
    )
    return checked_pair_logsumexp(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        formula=formula,
        normalize=normalize,
        skip_below=skip_below,
        backend=backend,
    )


def checked_pair_logsumexp(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """:func:`pair_logsumexp` of what :func:`check_operation` has checked.

    References without labels are class weights: reference j is the only one with the label j.
    """
    if backend == "reference":
        dtype = result_dtype(embeddings.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            lse_pos, lse_neg = pair_logsumexp_reference(
                embeddings, labels, ref_emb, ref_labels, formula=formula, normalize=normalize
            )
        return lse_pos.to(dtype), lse_neg.to(dtype)
    inputs = (embeddings, labels, ref_emb, ref_labels)
    options = (bool(normalize), float(skip_below), backend)
    if not is_traced(embeddings, backend):
        return _PairLogSumExp.apply(*inputs, formula, *options)
    return traced_pair_logsumexp(*inputs, formula, *options)


def check_operation(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    formula: PairFormula,
    skip_below: float,
    backend: str,
    classes: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Check the fused operation's arguments; both label tensors as it takes them."""
    labels, ref_labels = check_pair_inputs(embeddings, labels, ref_emb, ref_labels, classes)
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
        return forward_and_keep(
            ctx, embeddings, labels, ref_emb, ref_labels, formula, normalize, skip_below, backend
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        gradients = input_gradients(ctx, ctx.saved_tensors, grad_lse_pos, grad_lse_neg)
        return (*gradients, *(None,) * 4)


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
    keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
    problem = PairProblem(*inputs, formula, normalize, skip_below, keep)
    lse_pos, lse_neg, saved = run_forward(problem, backend)
    ctx.save_for_backward(*inputs, lse_pos, lse_neg, saved)
    ctx.settings = (formula, normalize, skip_below)
    ctx.backend = backend
    return lse_pos, lse_neg


def input_gradients(
    ctx: Any, saved_tensors: tuple[Any, ...], grad_lse_pos: Tensor, grad_lse_neg: Tensor
) -> tuple[Tensor | None, None, Tensor | None, None]:
    """Gradients of embeddings, labels, ref_emb and ref_labels, where they are needed.

    The saved tensors come as an argument since checkpointing lets them be asked for only once.
    """
    *inputs, lse_pos, lse_neg, saved = saved_tensors
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
    if torch.compiler.is_compiling() or under_transforms():
        return True
    if is_plain(embeddings):
        return False
    return resolve_backend(backend, embeddings.device, embeddings.dtype) == "cpu"


def is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, and nobody who watches what is done to them."""
    return type(tensor) in (Tensor, Parameter) and not is_in_torch_dispatch_mode()
