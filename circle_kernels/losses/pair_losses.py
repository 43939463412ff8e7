"""Pair losses of other papers, each a few lines over the two log-sum-exps of a row.

All take ``(embeddings, labels, ref_emb, ref_labels)`` and the options of
:func:`circle_kernels.circle_loss` that are not its own numbers: :class:`PairOptions`. Names,
numbers and means are those of pytorch-metric-learning, so that results compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.arguments import check_numbers
from circle_kernels.formula import UnifiedFormula
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.losses.pairs import PairOptions, pair_rows
from circle_kernels.operation.batch import Batch, Operation, check_batch
from circle_kernels.operation.reductions import softplus
from circle_kernels.operation.row_losses import reduced_row_losses
from circle_kernels.options import (
    REDUCTIONS,
    BackendName,
    Reduction,
    check_choice,
    finite_number,
    positive_number,
)


def multi_similarity_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    reduction: Reduction = "mean",
    **options: Unpack[PairOptions],
) -> Tensor:
    """Multi-similarity loss (Wang et al., CVPR 2019, arXiv 1904.06627, Eq. 15), without its miner.

    ``loss_i = softplus(log sum_p exp(-alpha (s_ip - base))) / alpha
    + softplus(log sum_n exp(beta (s_in - base))) / beta``

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
        ref_emb, ref_labels: (M, D) and (M,) references; without them the batch is compared with
            itself.
        alpha, beta: scales of positives and of negatives, greater than 0.
        base: the similarity that positives should be above and negatives below.
        reduction: ``"mean"`` over all rows, ``"sum"`` or ``"none"``.
        **options: ``normalize``, ``skip_below``, ``ignore_label``, ``pair_mask``, ``self_index``,
            ``group``, ``exchange``, ``same_sizes``, ``grad_reduction`` and ``backend``, as for
            :func:`circle_kernels.circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``; a set of pairs that is empty adds 0.

    Raises:
        As :func:`circle_kernels.circle_loss`.
    """

    def formula() -> UnifiedFormula:
        scales = positive_number("alpha", alpha), positive_number("beta", beta)
        margin = finite_number("base", base)
        return UnifiedFormula(
            margin_pos=margin, margin_neg=margin, gamma_pos=scales[0], gamma_neg=scales[1]
        )

    tensors = (embeddings, labels, ref_emb, ref_labels)
    rows = pair_rows("multi_similarity_loss", formula, tensors, reduction, options)
    lse_pos, lse_neg = rows.logsumexps()
    return rows.reduced(softplus(lse_pos) / alpha + softplus(lse_neg) / beta)


def supcon_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    **options: Unpack[PairOptions],
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv 2004.11362, Eq. 2).

    ``loss_i = log sum_j exp(s_ij / t) - mean_p s_ip / t`` over all pairs j of row i, and its
    positives p.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
        ref_emb, ref_labels: (M, D) and (M,) references; without them the batch is compared with
            itself.
        temperature: ``t``, greater than 0.
        reduction: ``"mean"`` over rows with a positive and another pair, ``"mean_all"``, ``"sum"``
            or ``"none"``.
        **options: ``normalize``, ``skip_below``, ``ignore_label``, ``pair_mask``, ``self_index``,
            ``group``, ``exchange``, ``same_sizes``, ``grad_reduction`` and ``backend``, as for
            :func:`circle_kernels.circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``; rows without positives have loss 0, and where
        no row has a negative all have.

    Raises:
        As :func:`circle_kernels.circle_loss`.
    """

    def formula() -> UnifiedFormula:
        gamma = 1 / positive_number("temperature", temperature)
        # Positives count as negatives do: both together are all pairs.
        return UnifiedFormula(gamma=gamma, gamma_pos=-gamma)

    tensors = (embeddings, labels, ref_emb, ref_labels)
    rows = pair_rows("supcon_loss", formula, tensors, reduction, options)
    lse_pos, lse_neg = rows.logsumexps()
    positives = rows.positives()
    has_negatives = lse_neg != -math.inf
    counted = (lse_pos != -math.inf) & ((positives.numbers > 1) | has_negatives)
    counted &= positives.any_row(has_negatives)
    lse_all = present_logsumexp(torch.stack([lse_pos, lse_neg]), dim=0)
    losses = lse_all - positives.mean_similarity() * rows.operation.formula.gamma
    # A row that is NaN says so, with or without positives.
    return rows.reduced(losses.masked_fill(~(counted | lse_all.isnan()), 0.0), counted)


def ntxent_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    temperature: float = 0.07,
    reduction: Reduction = "mean",
    **options: Unpack[PairOptions],
) -> Tensor:
    """NT-Xent or InfoNCE (Sohn 2016; van den Oord et al. 2018; Chen et al., ICML 2020, Eq. 1).

    ``loss_i = sum_p -log(exp(s_ip / t) / (exp(s_ip / t) + sum_n exp(s_in / t)))`` over positives p
    of row i, each beside all of its negatives n.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype; ``None`` with ``pair_mask``.
        ref_emb, ref_labels: (M, D) and (M,) references; without them the batch is compared with
            itself.
        temperature: ``t``, greater than 0.
        reduction: ``"mean"`` over all positive pairs, ``"mean_all"`` over all rows, ``"sum"`` or
            ``"none"``.
        **options: ``normalize``, ``skip_below``, ``ignore_label``, ``pair_mask``, ``self_index``,
            ``group``, ``exchange``, ``same_sizes``, ``grad_reduction`` and ``backend``, as for
            :func:`circle_kernels.circle_loss`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``, of which each is the sum over the row's
        positives; without negatives 0.

    Raises:
        As :func:`circle_kernels.circle_loss`.
    """

    def formula() -> UnifiedFormula:
        return UnifiedFormula(gamma=1 / positive_number("temperature", temperature))

    tensors = (embeddings, labels, ref_emb, ref_labels)
    rows = pair_rows("ntxent_loss", formula, tensors, reduction, options)
    lse_pos, lse_neg = rows.logsumexps()
    positives = rows.positives()
    if positives.are_single():
        losses = softplus(lse_pos + lse_neg)
    else:
        losses = positives.softplus_sums(lse_neg, rows.operation.formula.gamma)
        losses = torch.where(lse_neg.isnan(), lse_neg, losses)  # without positives, too
    return rows.reduced(losses, positives.numbers)


def n_pairs_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    skip_below: float = 0.0,
    backend: BackendName = "auto",
) -> Tensor:
    """N-pairs loss (Sohn, NIPS 2016, Eq. 6): of each class one pair, its first two rows.

    ``loss_c = log(1 + sum_{d != c} exp(s(x_c, y_d) - s(x_c, y_c)))`` with ``x_c`` and ``y_c`` the
    first and the second row of class c.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64.
        labels: (N,) integers of any dtype, any values.
        normalize: ``False`` takes inner products, as the paper does, instead of cosines.
        reduction: ``"mean"`` or ``"mean_all"`` over the classes that have two rows, ``"sum"`` or
            ``"none"``.
        skip_below, backend: as for :func:`circle_kernels.circle_loss`.

    Returns:
        A scalar, or (C,) with ``reduction="none"``, of the classes that have two rows, in the order
        of their labels. On a device the host waits to know how many these are.

    Raises:
        As :func:`circle_kernels.circle_loss`.
    """
    batch = check_batch(embeddings, labels, None, None)
    check_numbers("embeddings", batch.embeddings)
    first, second = first_two_of_classes(batch.labels)
    formula = UnifiedFormula(m=0.0, gamma=1.0)
    check_choice("reduction", reduction, REDUCTIONS)
    operation = Operation(formula, normalize, skip_below, backend)
    classes = batch.labels[first]
    pairs = Batch(batch.embeddings[first], classes, batch.embeddings[second], classes)
    return reduced_row_losses(pairs, operation, "mean_all" if reduction == "mean" else reduction)


def first_two_of_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The places (C,) of the first and of the second row of each class that has two, in the order
    of labels (N,). On a device the host waits to know how many these are."""
    values, order = labels.sort(stable=True)
    same = torch.cat([values.new_zeros(1, dtype=torch.bool), values[1:] == values[:-1]])
    second = (same[1:] & ~same[:-1]).nonzero().squeeze(1) + 1
    return order[second - 1], order[second]
