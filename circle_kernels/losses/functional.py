"""The losses as functions: check the hyper-parameters, call ``pair_logsumexp``, reduce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circle_kernels.arguments import check_similarities
from circle_kernels.distributed.groups import Group
from circle_kernels.distributed.headers import check_together
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.formula import CircleFormula, UnifiedFormula
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.operation.batch import (
    Batch,
    Operation,
    alike_of,
    check_batch,
    check_shared,
    operation_of,
    remembered,
    sharing_of,
)
from circle_kernels.operation.differentiable import usual_loss
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import loss_of_sets, softplus
from circle_kernels.operation.row_losses import reduced_row_losses
from circle_kernels.options import (
    REDUCTIONS,
    SCOPES,
    BackendName,
    Exchange,
    GradReduction,
    Reduction,
    Scope,
    check_choice,
    explain_other_names,
)

if TYPE_CHECKING:
    from circle_kernels.operation.chosen_pairs import Tensors
    from circle_kernels.operation.pair_masks import PairMask


@dataclass(frozen=True)
class RowReduction:
    """What becomes of the rows' log-sum-exps; arguments as for :func:`circle_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range, or two that exclude each other.
    """

    scope: Scope
    reduction: Reduction

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, SCOPES)
        check_choice("reduction", self.reduction, REDUCTIONS)


@explain_other_names
def circle_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    m: float = 0.4,
    gamma: float | Tensor = 80.0,
    scope: Scope = "anchor",
    reduction: Reduction = "mean",
    detach_weights: bool = True,
    normalize: bool = True,
    skip_below: float = 0.0,
    ignore_label: int | None = None,
    pair_mask: PairMask | None = None,
    self_index: Tensor | None = None,  # (N,)
    group: Group | None = None,
    exchange: Exchange = "gather",
    same_sizes: bool = False,
    grad_reduction: GradReduction = "mean",
    backend: BackendName = "auto",
) -> Tensor:
    """Circle loss with pair-wise labels (Sun et al., CVPR 2020, arXiv 2002.10857, Eq. 6).

    ``loss_i = softplus(lse_pos_i + lse_neg_i)`` with the log-sum-exps of
    ``-gamma [1 + m - s]_+ (s - 1 + m)`` over the positives of row i and of
    ``gamma [s + m]_+ (s - m)`` over its negatives. Memory grows with (N + M) * D.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype, any values; ``None`` with ``pair_mask``.
        ref_emb: (M, D) references to compare with, on the same device; of two dtypes the wider one
            counts. Without them the batch is compared with itself, and an embedding is not compared
            with itself.
        ref_labels: (M,) integers.
        m: relaxation margin, greater than -1 and less than 1. The paper uses 0.4 for retrieval and
            0.25 for faces and re-ID.
        gamma: scale of the logits, greater than 0. Large losses at large gamma are normal. A tensor
            with one number gets its gradient, which takes one more walk over the pairs; the host
            reads the number, so that it is best on the CPU.
        scope: ``"anchor"``: one loss per row. ``"batch"``: one loss over all positive and all
            negative pairs of the batch, each unordered pair counted once in self mode; always a
            scalar, whatever the reduction.
        reduction: ``"mean"`` over valid rows (those with at least one positive and one negative),
            ``"mean_all"`` over all N, ``"sum"``, or ``"none"``.
        detach_weights: treat the weights ``[.]_+`` as constants in the gradient, as the paper's
            Eq. 9 and 10 do; ``False`` differentiates them too.
        normalize: ``False`` takes plain inner products; normalise the embeddings yourself.
        skip_below: share of a row's total weight that may be left out of the gradient to save work,
            in [0, 1); 0 is exact, and the loss always is. The C++ kernel makes use of it; bound and
            meaning are in docs/derivation.md.
        ignore_label: rows and references with this label take part in nothing, as unlabelled data:
            the rows' loss is 0, and so are the gradients. On a device the host waits to know how
            many are left.
        pair_mask: which pairs are positive and which negative, in place of labels, as where a row
            has several: a boolean matrix (N, M), of which True is positive and False negative
            (without references, M = N and the diagonal is left out); a sparse one, whose entries
            are the positive pairs; an int8 matrix, 1 for positive, -1 for negative and 0 for
            neither; or four vectors of indices, rows and columns of the positive pairs, then of the
            negative ones. Takes one byte for each of the N * M pairs.
        self_index: (N,) integers: the place of each row's own copy among the references, which is
            left out as neither positive nor negative; -1 for none.
        group: the processes that share one batch, each of which gives its own rows (and references,
            where given) and computes these rows' part; every process returns the loss of the whole
            batch. ``"world"`` for all processes; a ProcessGroup or a DeviceMesh of one dimension
            for some; ``None`` for THIS PROCESS ALONE, whatever else runs.
            (``torch.distributed.group.WORLD`` is ``None``, too, until ``init_process_group`` has
            been called; ``"world"`` is looked up at each call.) A collective call, as its backward
            pass is; batch sizes may differ, also at every step, and be 0. See docs/distributed.md.
        exchange: ``"gather"``: every process gathers all embeddings, (N, D). ``"ring"``: blocks of
            them travel from process to process, twice, for batches whose embeddings do not fit.
        same_sizes: that every process has as many rows (and references) as this one, always.
            Nothing is exchanged then but data, and the host never waits. Where processes differ in
            another argument, the loss is NaN instead of an error.
        grad_reduction: what is done to the processes' gradients afterwards. ``"mean"``: they are
            averaged, as DDP and FSDP do. ``"sum"``: they are added. The outcome is the gradient of
            one process with the whole batch; of the loss times a number that has to be the same in
            all processes. With ``reduction="none"`` that process has all upstream gradients.
        backend: see :func:`circle_kernels.available_backends`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``, of this process's rows; float32 (float64 for
        float64 input), also under autocast. Rows without positives or without negatives have loss
        0 and gradient 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; the
            message names it. Where processes of ``group`` differ in D, a dtype or an argument all
            of them raise.
        RuntimeError: the backend asked for cannot serve these tensors; a second derivative; or
            ``group="world"`` before ``init_process_group``.
    """
    return loss_of(
        CircleFormula,
        (embeddings, labels, ref_emb, ref_labels),
        (scope, reduction),
        (ignore_label, pair_mask, self_index),
        (group, exchange, same_sizes, grad_reduction),
        m=m,
        gamma=gamma,
        detach_weights=detach_weights,
        normalize=normalize,
        skip_below=skip_below,
        backend=backend,
    )


@explain_other_names
def unified_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    m: float,
    gamma: float | Tensor,
    scope: Scope = "anchor",
    reduction: Reduction = "mean",
    normalize: bool = True,
    skip_below: float = 0.0,
    ignore_label: int | None = None,
    pair_mask: PairMask | None = None,
    self_index: Tensor | None = None,  # (N,)
    group: Group | None = None,
    exchange: Exchange = "gather",
    same_sizes: bool = False,
    grad_reduction: GradReduction = "mean",
    backend: BackendName = "auto",
) -> Tensor:
    """The paper's unified loss (Eq. 1): ``log(1 + sum sum exp(gamma (s_n - s_p + m)))`` per row.

    With one positive per row and class weights as references it is AM-Softmax, with ``m=0``
    NormFace. Result and errors are those of :func:`circle_loss`.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
        ref_emb, ref_labels: (M, D) and (M,) references; without them the batch is compared with
            itself.
        m: margin, any finite number.
        gamma: scale of the logits, greater than 0; a tensor with one number gets its gradient.
        scope: ``"anchor"``, one loss per row, or ``"batch"``, one over all pairs.
        reduction: ``"mean"`` over valid rows, ``"mean_all"``, ``"sum"`` or ``"none"``.
        normalize, skip_below, ignore_label, pair_mask, self_index, group, exchange, same_sizes,
            grad_reduction, backend: as for :func:`circle_loss`.
    """
    return loss_of(
        UnifiedFormula,
        (embeddings, labels, ref_emb, ref_labels),
        (scope, reduction),
        (ignore_label, pair_mask, self_index),
        (group, exchange, same_sizes, grad_reduction),
        m=m,
        gamma=gamma,
        normalize=normalize,
        skip_below=skip_below,
        backend=backend,
    )


@explain_other_names
def circle_loss_from_similarity(
    sp: Tensor,  # (P,)
    sn: Tensor,  # (K,)
    *,
    m: float,
    gamma: float,
    detach_weights: bool = True,
) -> Tensor:
    """Circle loss of one set of positive and one set of negative similarities (Eq. 6).

    Args:
        sp: (P,) similarities of positive pairs, any floating dtype.
        sn: (K,) similarities of negative pairs, same device; of two dtypes the wider one counts.
        m, gamma, detach_weights: as for :func:`circle_loss`.

    Returns:
        A scalar, float32 (float64 for float64 input); 0, attached to the graph, where one of the
        sets is empty.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    sp, sn = check_similarities(sp, sn)
    formula = CircleFormula(m=m, gamma=gamma, detach_weights=detach_weights)
    return softplus(
        present_logsumexp(formula.positive_logits(sp), dim=0)
        + present_logsumexp(formula.negative_logits(sn), dim=0)
    )


def loss_of(
    formula_type: type[CircleFormula] | type[UnifiedFormula],
    tensors: Tensors,
    rows: tuple[Scope, Reduction],
    chosen: tuple[int | None, PairMask | None, Tensor | None],
    shared: tuple[Group | None, Exchange, bool, GradReduction],
    **options: Any,
) -> Tensor:
    """The loss of what users give: arguments of :func:`check_batch`, :class:`RowReduction`, what
    chooses pairs, :class:`Sharing` and :func:`operation_of`."""
    group, _, same_sizes, _ = shared
    is_learned = isinstance(options["gamma"], Tensor)
    if tensors[1] is None or is_learned or any(each is not None for each in chosen):
        # With what few need.
        from circle_kernels.losses.chosen import loss_of_chosen

        reduction_of(*rows)
        return loss_of_chosen(formula_type, tensors, rows, (*chosen, *shared), options)
    if torch.compiler.is_compiling():
        loss = usual_loss(formula_type.name, tensors, (*rows, group), options)
        if loss is not None:
            return loss

    def check() -> tuple[Batch, Operation, RowReduction, Sharing]:
        operation = operation_of(formula_type, **options)
        reduction, sharing = reduction_of(*rows), sharing_of(*shared)
        batch = check_batch(*tensors)  # type: ignore[arg-type]
        check_shared(batch, operation, sharing)
        return batch, operation, reduction, sharing

    if group is None:
        return pair_loss(*check())
    return pair_loss(*check_together(check, f"{formula_type.name}_loss", group, same_sizes))


reduction_of: Callable[..., RowReduction] = remembered(RowReduction)


def pair_loss(batch: Batch, operation: Operation, rows: RowReduction, sharing: Sharing) -> Tensor:
    """The loss of a checked batch."""
    if sharing.group is not None:
        # With its ops, which few need and whose definition takes milliseconds.
        from circle_kernels.operation.shared import losses as shared_losses

        call = f"{operation.formula.name}_loss"
        alike = alike_of(call, (rows.scope, rows.reduction), sharing, operation)
        return shared_losses.shared_loss(batch, operation, sharing, alike)
    if rows.scope == "anchor":
        return reduced_row_losses(batch, operation, rows.reduction)
    return loss_of_sets(*logsumexps(batch, operation), in_self_mode=batch.ref_emb is None)
