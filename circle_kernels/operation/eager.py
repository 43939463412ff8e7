"""``pair_logsumexp``: the fused operation and its gradient.

Everything above this module is ordinary PyTorch on vectors of length N; everything below it is a
backend's two functions (see backends/problem.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from circle_kernels.arguments import check_real_or_fake, check_undistributed
from circle_kernels.backends.addressable import all_addressable, is_watched, under_transforms
from circle_kernels.backends.choice import (
    is_by_autograd,
    is_of_torch,
    run_backward,
    run_backward_of_any,
    run_forward,
    serving,
    without_autocast,
)
from circle_kernels.backends.problem import Needs, PairProblem, Passed
from circle_kernels.distributed.groups import Group
from circle_kernels.distributed.headers import check_together
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Batch, Operation, check_batch, check_shared, owned
from circle_kernels.operation.differentiable import (
    NO_SECOND_DERIVATIVE,
    traced_gradients,
    traced_logsumexps,
)
from circle_kernels.operation.registered import (
    decode_precision,
    encode_precision,
    is_batch_of_gradients,
)
from circle_kernels.options import BackendName, Exchange
from circle_kernels.precision import float32_precision

if TYPE_CHECKING:
    from circle_kernels.operation.pair_masks import PairMask


def pair_logsumexp(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    formula: PairFormula,
    normalize: bool = True,
    skip_below: float = 0.0,
    pair_mask: PairMask | None = None,
    self_index: Tensor | None = None,  # (N,)
    group: Group | None = None,
    exchange: Exchange = "gather",
    same_sizes: bool = False,
    backend: BackendName = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the pair logits of each row, over its positives and over its negatives.

    With ``s_ij`` the cosine similarity of embedding i and reference j, computes for every row

        ``lse_pos_i = log sum_{j: label_j == label_i} exp z_p(s_ij)``
        ``lse_neg_i = log sum_{j: label_j != label_i} exp z_n(s_ij)``

    without storing the (N, M) similarities. These are the two sums inside Eq. 1 and Eq. 6 of
    Sun et al., CVPR 2020 (arXiv 2002.10857).

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64.
        labels: (N,) integers, any values; ``None`` with ``pair_mask``.
        ref_emb: (M, D) references on the same device; of two dtypes the wider one counts. Without
            them the batch is compared with itself and an embedding is not compared with itself.
        ref_labels: (M,) integers.
        formula: the pair logits, for example :class:`circle_kernels.CircleFormula`, or one of
            :meth:`circle_kernels.PairFormula.from_functions`.
        normalize: ``False`` takes plain inner products instead of cosines.
        skip_below: share of a row's total weight that a backend may leave out of the gradient to
            save work, in [0, 1); 0 is exact. See :func:`circle_kernels.circle_loss`.
        pair_mask, self_index: which pairs count, as for :func:`circle_kernels.circle_loss`.
        group: the processes that share one batch: each gives its own rows (and references) and gets
            these rows' sums over the rows (or references) of all. The gradient of its rows is that
            of what all processes compute of all sums, added up; for one of their average multiply
            it by their number. A collective call, as its backward pass is: every process has to
            make both.
        exchange, same_sizes: how they exchange rows, as for :func:`circle_kernels.circle_loss`.
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

    def check() -> tuple[Batch, Operation, Sharing]:
        if labels is not None and pair_mask is None and self_index is None:
            batch = check_batch(embeddings, labels, ref_emb, ref_labels)
        else:
            # With what few need.
            from circle_kernels.operation.chosen_pairs import chosen_batch

            tensors = (embeddings, labels, ref_emb, ref_labels)
            chosen = {"pair_mask": pair_mask, "self_index": self_index, "group": group}
            batch, _ = chosen_batch("pair_logsumexp", tensors, chosen)
        operation = Operation(formula, normalize, skip_below, backend)
        sharing = Sharing(group, exchange, same_sizes)
        check_shared(batch, operation, sharing)
        return batch, operation, sharing

    if group is None:
        return logsumexps(*check()[:2])
    # With its ops, which few need and whose definition takes milliseconds.
    from circle_kernels.operation.shared import over_processes

    checked = check_together(check, "pair_logsumexp", group, same_sizes)
    return over_processes.shared_logsumexps(*checked)[:2]


def logsumexps(batch: Batch, operation: Operation) -> tuple[Tensor, Tensor]:
    """:func:`pair_logsumexp` of a checked batch."""
    if is_by_autograd(operation.backend):
        problem = operation.problem(batch)
        with without_autocast(batch.embeddings.device.type):
            lse_pos, lse_neg, _ = serving(problem, operation.backend).forward(problem)
        return lse_pos, lse_neg
    if is_traced(batch, operation):
        return traced_logsumexps(batch, operation)
    call = (batch, operation, batch.requires_grad)
    return _PairLogSumExp.apply(batch.embeddings, batch.ref_emb, call)


class _PairLogSumExp(torch.autograd.Function):
    """Ties a backend's forward to its backward; keeps the inputs and vectors, no matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,  # the batch's, as is the next: what autograd has to see
        ref_emb: Tensor | None,
        call: tuple[Batch, Operation, bool],  # and if a backward pass can follow
    ) -> tuple[Tensor, Tensor]:
        batch, operation, keep = call
        return forward_and_keep(ctx, operation, *begin(batch, operation, keep))

    @staticmethod
    def backward(ctx: Any, grad_lse_pos: Tensor, grad_lse_neg: Tensor) -> tuple[Any, ...]:
        gradients = once(
            ctx.saved_tensors,
            (grad_lse_pos, grad_lse_neg),
            lambda saved, upstream: input_gradients(ctx, saved, *upstream),
        )
        return (*gradients, None)


def begin(batch: Batch, operation: Operation, keep: bool) -> tuple[PairProblem, Any]:
    """The problem of a checked batch, and the module of the backend that serves it."""
    precision = float32_precision(batch.embeddings.device.type)
    problem = operation.problem(batch, precision=precision, keep_for_backward=keep)
    return problem, serving(problem, operation.backend)


@functools.cache  # making a tensor takes microseconds
def _kept_precision(precision: str) -> Tensor:
    # Whose tensors no later call could keep, or read.
    with torch.inference_mode(False), _python_dispatch._disable_current_modes():
        return encode_precision(precision)


def forward_and_keep(
    ctx: Any, operation: Operation, problem: PairProblem, module: Any
) -> tuple[Tensor, Tensor]:
    """Both log-sum-exps; ``ctx`` gets what :func:`input_gradients` needs, if that can follow."""
    lse_pos, lse_neg, saved = run_forward(module, problem)
    if problem.keep_for_backward:
        are_read = not module.saves_labels(problem)
        tensors = (
            owned(problem.embeddings),
            owned(problem.labels, are_read),
            owned(problem.ref_emb),
            owned(problem.ref_labels, are_read),
            problem.listed,  # which no one else has
            owned(problem.own_columns),
        )
        # Not beside the tensors: checkpointing runs the forward pass again, and what that reads of
        # the settings goes with what it saves.
        ctx.save_for_backward(*tensors, saved, _kept_precision(problem.precision))
        ctx.module, ctx.operation = module, operation
        ctx.needs = Needs(*ctx.needs_input_grad[:2])
    return lse_pos, lse_neg


def input_gradients(
    ctx: Any, saved_tensors: tuple[Any, ...], grad_lse_pos: Tensor, grad_lse_neg: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of both sides of a batch, where they are needed.

    The saved tensors come as an argument since checkpointing lets them be asked for only once.
    """
    *tensors, saved, precision = saved_tensors
    batch, operation, needs = Batch(*tensors), ctx.operation, ctx.needs
    passed = Passed(saved, grad_lse_pos, grad_lse_neg)
    # The losses of rows pass one gradient twice.
    upstream = passed[1:3] if grad_lse_pos is not grad_lse_neg else passed[1:2]
    problem = operation.problem(batch, precision=decode_precision(precision))
    if all_addressable(*tensors, saved, *upstream):
        gradients = run_backward(ctx.module, problem, passed, needs)
    elif is_batch_of_gradients(grad_lse_pos, grad_lse_neg):
        gradients = traced_gradients(batch, operation, passed, needs, precision)
    else:
        gradients = run_backward_of_any(ctx.module, problem, passed, needs, operation.backend)
    return (
        gradients[0] if needs.embeddings else None,
        gradients[1] if needs.references else None,
    )


def once(
    saved: tuple[Any, ...],
    upstream: tuple[Tensor, ...],
    compute: Callable[[tuple[Any, ...], tuple[Tensor, ...]], tuple[Tensor | None, ...]],
) -> tuple[Tensor | None, ...]:
    """What ``compute`` makes of saved tensors and upstream gradients, differentiable never again.

    Not torch's ``once_differentiable``: its results are constants where the upstream gradients are,
    and the derivative of a penalty on the gradient would be silently 0.
    """
    for gradient in upstream:
        if type(gradient) is not Tensor:
            check_undistributed("the upstream gradient", gradient)
            check_real_or_fake({"embeddings": saved[0], "the upstream gradient": gradient})
    if not torch.is_grad_enabled():
        return compute(saved, upstream)
    with torch.no_grad():  # create_graph=True
        gradients = compute(saved, upstream)
    sources = [each for each in (*saved, *upstream) if each is not None and each.requires_grad]
    return tuple(
        None if gradient is None else _NoSecondDerivative.apply(gradient, *sources)
        for gradient in gradients
    )


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient as it is, which says so where it is differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_gradient: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def is_traced(batch: Batch, operation: Operation) -> bool:
    """Whether the operation has to be one registered op.

    Compilers must not look inside the kernels; and kernels read memory, which fake tensors and
    wrappers do not have and of which tracers see nothing. In eager mode a registered op would only
    add tens of microseconds to each call.
    """
    if torch.compiler.is_compiling() or under_transforms() or torch.jit.is_tracing():
        return True
    watched = is_watched()  # which may have made something else of the tensors
    if (watched or not batch.readable) and not all_addressable(*batch.tensors):
        return True
    return watched and not is_of_torch(operation.backend, batch.embeddings, operation.formula)
