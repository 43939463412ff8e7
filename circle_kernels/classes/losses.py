"""Losses with class labels: references are class weights, and each row has one positive."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from circle_kernels.arguments import one_dtype
from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.problem import result_dtype
from circle_kernels.classes.arguments import (
    IGNORE_INDEX,
    ClassRows,
    checked_labels,
    checked_sides,
)
from circle_kernels.classes.sampling import (
    Sampling,
    gather_rows,
    positions_among,
    sample_classes,
    sample_size,
)
from circle_kernels.classes.smoothing import (
    check_label_smoothing,
    similarity_sums,
    smoothing_terms,
)
from circle_kernels.formula import CircleFormula, PairFormula, UnifiedFormula
from circle_kernels.operation.batch import Batch, Operation, operation_of
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import reduce_losses, rows_counted, softplus
from circle_kernels.operation.row_losses import reduced_row_losses
from circle_kernels.options import (
    BackendName,
    Reduction,
    check_flag,
    check_integer,
    explain_other_names,
)
from circle_kernels.reference import similarity_matrix


@explain_other_names
def class_circle_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    weight: Tensor,  # (C, D)
    *,
    m: float = 0.25,
    gamma: float | Tensor = 256.0,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    detach_weights: bool = True,
    normalize: bool = True,
    skip_below: float = 0.0,
    sample_rate: float = 1.0,
    sample_correction: bool = False,
    sparse_grad: bool = False,
    generator: torch.Generator | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    """Circle loss with class labels (Sun et al., CVPR 2020, arXiv 2002.10857, Eq. 6 with K = 1).

    ``loss_i = softplus(z_p(s_iy) + log sum_{j != y} exp z_n(s_ij))`` with ``s_ij`` the cosine of
    embedding i and class weight j, and y the label of row i. It equals the cross-entropy of the
    logits ``z_n`` with ``-z_p`` at the target; nothing of size (N, C) is stored.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.
        weight: (C, D) one row per class, same device; need not be normalised. Where its dtype is
            not that of the embeddings, as under autocast, the wider one counts.
        m: relaxation margin, greater than -1 and less than 1.
        gamma: scale of the logits, greater than 0, or a tensor with it, which gets its gradient, as
            for :func:`circle_kernels.circle_loss`. Large losses at large gamma are normal.
        reduction: ``"mean"`` over rows that are not ignored, ``"mean_all"`` over all N, ``"sum"``,
            or ``"none"``.
        ignore_index: rows with this label have loss 0 and gradient 0.
        detach_weights, normalize, skip_below: as for :func:`circle_kernels.circle_loss`.
        sample_rate: share of the classes to compare with, in (0, 1]: all that the batch has, and a
            random choice of others; never fewer than N. Only their rows of ``weight`` get a
            gradient.
        sample_correction: adds ``log(C / sampled)`` to the negatives' log-sum-exp, as if the
            classes left out were like the others.
        sparse_grad: the gradient of ``weight`` is a sparse tensor of the sampled rows, so that an
            optimizer that takes sparse gradients touches no others.
        generator: for the sampling, on the device of ``weight``; by default PyTorch's own.
        backend: see :func:`circle_kernels.available_backends`.

    Returns:
        A scalar, or (N,) with ``reduction="none"``; float32 (float64 for float64 input), also
        under autocast.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; the
            message names it. A label out of range raises on the CPU; on other devices, where the
            host does not wait to see it, and under torch.compile, it makes the row's loss NaN.
        RuntimeError: the backend asked for cannot serve these tensors; or a second derivative.
    """
    operation = operation_of(
        CircleFormula,
        m=m,
        gamma=gamma,
        detach_weights=detach_weights,
        normalize=normalize,
        skip_below=skip_below,
        backend=backend,
    )
    rows = ClassRows(reduction, ignore_index)
    sampling = Sampling(sample_rate, sample_correction, sparse_grad, generator)
    return class_loss((embeddings, labels, weight), operation, rows, sampling)


@explain_other_names
def class_unified_loss(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    weight: Tensor,  # (C, D)
    *,
    m: float,
    gamma: float | Tensor,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    normalize: bool = True,
    skip_below: float = 0.0,
    sample_rate: float = 1.0,
    sample_correction: bool = False,
    sparse_grad: bool = False,
    generator: torch.Generator | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    """The unified loss (same paper, Eq. 1 and 2) with class labels: AM-Softmax; ``m=0``: NormFace.

    It equals the cross-entropy of ``gamma * s`` with ``gamma * (s - m)`` at the target. Result and
    errors are those of :func:`class_circle_loss`.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64; need not be normalised.
        labels: (N,) integers of any dtype in [0, C), or ``ignore_index``.
        weight: (C, D) one row per class, same device; need not be normalised.
        m: margin, any finite number.
        gamma: scale of the logits, greater than 0; a tensor with one number gets its gradient.
        reduction: ``"mean"`` over rows that are not ignored, ``"mean_all"``, ``"sum"`` or
            ``"none"``.
        ignore_index, normalize, skip_below, sample_rate, sample_correction, sparse_grad, generator,
            backend: as for :func:`class_circle_loss`.
        label_smoothing: share of the target that is spread evenly over all classes, the own one
            too, in [0, 1], as for ``torch.nn.functional.cross_entropy`` of these logits (Szegedy et
            al., CVPR 2016, arXiv 1512.00567). Exact, and still without them, since their mean is
            linear in the sum of the class weights; the backward pass takes memory for a second
            gradient of ``weight`` meanwhile. It needs all classes: ``sample_rate=1``.
    """
    operation = operation_of(
        UnifiedFormula,
        m=m,
        gamma=gamma,
        normalize=normalize,
        skip_below=skip_below,
        backend=backend,
    )
    sampling = Sampling(sample_rate, sample_correction, sparse_grad, generator)
    smoothing = check_label_smoothing(label_smoothing, sampling)
    rows = ClassRows(reduction, ignore_index, smoothing)
    return class_loss((embeddings, labels, weight), operation, rows, sampling)


def class_logits(
    embeddings: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    weight: Tensor,  # (C, D)
    *,
    formula: PairFormula,
    ignore_index: int = IGNORE_INDEX,
    normalize: bool = True,
) -> Tensor:  # (N, C)
    """Logits whose cross-entropy is the class loss; without labels ``gamma * s``, for inference.

    With labels: ``z_n(s_ij)``, and ``-z_p(s_iy)`` at the target. A row to ignore has no target.
    Ordinary PyTorch that stores (N, C) matrices, differentiable as the loss is.
    """
    check_flag("normalize", normalize)
    embeddings, weight = checked_sides(embeddings, labels, weight)
    dtype = result_dtype(torch.promote_types(embeddings.dtype, weight.dtype))
    with without_autocast(embeddings.device.type):
        similarity = similarity_matrix(
            embeddings.to(dtype), weight.to(dtype), normalize=normalize
        )  # (N, C)
        if labels is None:
            return similarity * formula.gamma
        ignore_index = check_integer("ignore_index", ignore_index)
        labels, factors = checked_labels(labels, embeddings, len(weight), ignore_index)
        target = labels[:, None] == torch.arange(len(weight), device=weight.device)
        logits = torch.where(
            target, -formula.positive_logits(similarity), formula.negative_logits(similarity)
        )
        return logits if factors is None else logits * factors[:, None]


def class_loss(
    inputs: tuple[Tensor, Tensor, Tensor],  # embeddings, labels, weight
    operation: Operation,
    rows: ClassRows,
    sampling: Sampling,
    losses_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of what users give; ``losses_of`` makes rows' losses of both log-sum-exps (N,) of
    each, where it is not ``softplus`` of their sum."""
    embeddings, labels, weight = inputs
    embeddings, weight = checked_sides(embeddings, labels, weight)
    labels, factors = checked_labels(labels, embeddings, len(weight), rows.ignore_index)
    columns, correction = weight, 0.0
    if sampling.takes_rows:
        size = sample_size(len(labels), len(weight), sampling.rate)
        sampled = sample_classes(labels, len(weight), size, sampling.generator)
        columns = gather_rows(weight, sampled, sparse_grad=sampling.sparse_grad)
        labels = positions_among(labels, sampled)
        if sampling.correction and size > 0:
            correction = math.log(len(weight) / size)
    embeddings, columns = one_dtype(embeddings, columns)
    batch = Batch(embeddings, labels, columns)
    # With one class nothing can be told apart, however smooth.
    smoothing = rows.label_smoothing if len(weight) > 1 else 0.0
    if smoothing > 0 and operation.scale_is_learned:
        raise ValueError("label_smoothing must be 0 where gamma is learned, got both")
    plain = correction == 0 and smoothing == 0 and losses_of is None
    if plain and not operation.scale_is_learned:
        loss = reduced_row_losses(batch, operation, rows.reduction)
    else:
        lse_pos, lse_neg = logsumexps(batch, operation)
        if operation.scale_is_learned:
            # With its ops, which few need.
            from circle_kernels.operation.learned_scale import with_scale_gradient

            lse_pos, lse_neg = with_scale_gradient((lse_pos, lse_neg), batch, operation)
        lse_neg = lse_neg + correction
        exponents = lse_pos + lse_neg
        losses = softplus(exponents) if losses_of is None else losses_of(lse_pos, lse_neg)
        if smoothing > 0:
            sums = similarity_sums(batch, operation)
            terms = smoothing_terms(lse_pos, sums, labels, len(weight), operation.formula)
            losses = losses + terms * smoothing
        counted = rows_counted(exponents, losses, rows.reduction)
        loss = reduce_losses(losses, counted, rows.reduction)
    if factors is None:
        return loss
    return loss * (factors if rows.reduction == "none" else factors.prod())
