"""The losses as functions: check the hyper-parameters, call ``pair_logsumexp``, reduce."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels.arguments import check_similarities
from circle_kernels.distributed.gather import gather_batch
from circle_kernels.distributed.groups import Group, check_group, check_group_reduction
from circle_kernels.formula import CircleFormula, UnifiedFormula
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.operation.batch import Batch, Operation, check_batch, operation_of, remembered
from circle_kernels.operation.differentiable import usual_loss
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import REDUCTIONS, softplus
from circle_kernels.operation.row_losses import reduced_row_losses
from circle_kernels.options import check_choice, explain_other_names

SCOPES = ("anchor", "batch")


@dataclass(frozen=True)
class RowReduction:
    """What becomes of the rows' log-sum-exps; arguments as for :func:`circle_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range, or two that exclude each other.
    """

    scope: str
    reduction: str
    group: Group | None

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, SCOPES)
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_group(self.group)
        check_group_reduction(self.group, self.reduction)


@explain_other_names
def circle_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    m: float = 0.4,
    gamma: float = 80.0,
    scope: str = "anchor",
    reduction: str = "mean",
    detach_weights: bool = True,
    normalize: bool = True,
    skip_below: float = 0.0,
    group: Group | None = None,
    backend: str = "auto",
) -> Tensor:
    """Circle loss with pair-wise labels (Sun et al., CVPR 2020, arXiv 2002.10857, Eq. 6).

    ``loss_i = softplus(lse_pos_i + lse_neg_i)`` with the log-sum-exps of
    ``-gamma [1 + m - s]_+ (s - 1 + m)`` over the positives of row i and of
    ``gamma [s + m]_+ (s - m)`` over its negatives. Memory grows with (N + M) * D.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype, any values.
        ref_emb: (M, D) references to compare with, on the same device; of two dtypes the wider one
            counts. Without them the batch is compared with itself, and an embedding is not compared
            with itself.
        ref_labels: (M,) integers.
        m: relaxation margin, greater than -1 and less than 1. The paper uses 0.4 for retrieval and
            0.25 for faces and re-ID.
        gamma: scale of the logits, greater than 0. Large losses at large gamma are normal.
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
        group: the processes that share one batch: everybody's embeddings (and references, where
            given) are gathered, every process returns the loss of the whole batch, and averaging
            the processes' gradients, as DDP does, gives its gradient. ``"world"`` for all
            processes; a ProcessGroup or a DeviceMesh of one dimension for some; ``None`` for this
            process alone. (``torch.distributed.group.WORLD`` is ``None``, too, until
            ``init_process_group`` has been called; the name is looked up at each call.) A
            collective call; batch sizes may differ. torch.compile ends its graph before it and
            begins another. pytorch-metric-learning's DistributedLossWrapper has the same gradient,
            and the value times the number of processes.
        backend: see :func:`circle_kernels.available_backends`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``; float32 (float64 for float64 input), also
        under autocast. Rows without positives or without negatives have loss 0 and gradient 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; the
            message names it. Where processes of ``group`` differ in D or dtype all of them raise.
        RuntimeError: the backend asked for cannot serve these tensors; a second derivative; or
            ``group="world"`` before ``init_process_group``.
    """
    return loss_of(
        CircleFormula,
        (embeddings, labels, ref_emb, ref_labels),
        (scope, reduction, group),
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
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    m: float,
    gamma: float,
    scope: str = "anchor",
    reduction: str = "mean",
    normalize: bool = True,
    skip_below: float = 0.0,
    group: Group | None = None,
    backend: str = "auto",
) -> Tensor:
    """The paper's unified loss (Eq. 1): ``log(1 + sum sum exp(gamma (s_n - s_p + m)))`` per row.

    With one positive per row and class weights as references it is AM-Softmax, with ``m=0``
    NormFace. ``m`` may be any finite number; other arguments, result and errors as for
    :func:`circle_loss`.
    """
    return loss_of(
        UnifiedFormula,
        (embeddings, labels, ref_emb, ref_labels),
        (scope, reduction, group),
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
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    rows: tuple[str, str, Group | None],
    **options: Any,
) -> Tensor:
    """The loss of what users give: arguments of :func:`rows_of` and :func:`operation_of`."""
    if torch.compiler.is_compiling():
        loss = usual_loss(formula_type.name, tensors, rows, options)
        if loss is not None:
            return loss
    operation = operation_of(formula_type, **options)
    reduction = rows_of(*rows)
    return pair_loss(check_batch(*tensors), operation, reduction)


@remembered
def rows_of(scope: str, reduction: str, group: Group | None) -> RowReduction:
    """:class:`RowReduction`, which nearly every step has from the one before."""
    return RowReduction(scope, reduction, group)


def pair_loss(batch: Batch, operation: Operation, rows: RowReduction) -> Tensor:
    """The loss of a checked batch."""
    if rows.group is not None:
        batch = Batch(*gather_batch(*batch[:4], rows.group))
    if rows.scope == "anchor":
        return reduced_row_losses(batch, operation, rows.reduction)
    lse_pos, lse_neg = logsumexps(batch, operation)
    # In self mode every unordered pair stands in two rows.
    times_counted = 2 if batch.ref_emb is None else 1
    return softplus(
        present_logsumexp(lse_pos, dim=0)
        + present_logsumexp(lse_neg, dim=0)
        - 2 * math.log(times_counted)
    )
