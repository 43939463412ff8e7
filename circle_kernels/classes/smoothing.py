"""Label smoothing of the unified loss without its logits.

The cross-entropy of logits ``l`` with smoothed labels is the class loss and

    label_smoothing * (l_y - mean_j l_j),

where ``l_y = -z_p(s_iy)`` is the positive log-sum-exp of the row with the other sign, and all other
logits are linear in the similarities: their mean takes no more than each row's product with the sum
of the class weights. Circle loss multiplies each logit by its own [.]_+, so that there it would
take all of them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends.choice import is_by_autograd, without_autocast
from circle_kernels.backends.problem import result_dtype
from circle_kernels.backends.rows import unit_rows
from circle_kernels.classes.arguments import NO_CLASS
from circle_kernels.classes.sampling import Sampling
from circle_kernels.formula import PairFormula
from circle_kernels.operation.batch import Batch, Operation, owned
from circle_kernels.operation.eager import is_traced, once
from circle_kernels.operation.registered import is_batch_of_gradients
from circle_kernels.options import real_number

_ENTRIES_AT_ONCE = 2**20  # of the weight, while its rows are normalised


def check_label_smoothing(label_smoothing: float, sampling: Sampling) -> float:
    """The share as a float; it has to be in [0, 1], and 0 with sampled classes.

    Raises:
        TypeError, ValueError: something else.
    """
    share = real_number("label_smoothing", label_smoothing)
    if not 0 <= share <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing!r}")
    if share > 0 and sampling.rate < 1:
        raise ValueError(
            "label_smoothing must be 0 where classes are sampled, since it takes the logits of all "
            f"of them: got label_smoothing={label_smoothing!r} with sample_rate={sampling.rate!r}"
        )
    return share


def smoothing_terms(
    lse_pos: Tensor,  # (N,)
    similarity_sums: Tensor,  # (N,) over all classes
    labels: Tensor,  # (N,), negative where a row has no class
    num_classes: int,
    formula: PairFormula,
) -> Tensor:  # (N,)
    """``l_y - mean_j l_j`` of each row, 0 where it has no class."""
    mean_margin = formula.m * ((num_classes - 1) / num_classes)
    mean_logits = (similarity_sums / num_classes + mean_margin) * formula.gamma
    # Also of the gradient, to which these rows' infinite log-sum-exps must not get.
    return (-lse_pos - mean_logits).masked_fill(labels <= NO_CLASS, 0)


def similarity_sums(batch: Batch, operation: Operation) -> Tensor:  # (N,)
    """The sum of each row's similarities to all class weights."""
    embeddings, weight = batch.embeddings, cast(Tensor, batch.ref_emb)
    with without_autocast(embeddings.device.type):
        # Compilers make of this what is below; the reference is differentiated again.
        if is_by_autograd(operation.backend) or is_traced(batch, operation):
            return _plain_sums(embeddings, weight, operation.normalize)
        return _SimilaritySums.apply(embeddings, weight, operation.normalize)


def _plain_sums(embeddings: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    dtype = result_dtype(embeddings.dtype)
    embeddings, weight = embeddings.to(dtype), weight.to(dtype)
    if normalize:
        embeddings, weight = F.normalize(embeddings, dim=1), F.normalize(weight, dim=1)
    return (embeddings * weight.sum(0)).sum(1)


class _SimilaritySums(torch.autograd.Function):
    """The products with the sum of all class weights, of which no copy is made on the way.

    No matrix products, which PyTorch's settings may make less precise: they take no time here.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, weight: Tensor, normalize: bool) -> Tensor:
        total = embeddings.new_zeros(weight.shape[1], dtype=result_dtype(weight.dtype))
        for part in _parts(weight):
            total += unit_rows(part, normalize).rows.sum(0)
        ctx.save_for_backward(owned(embeddings), weight if ctx.needs_input_grad[1] else None, total)
        ctx.normalize = normalize
        return (unit_rows(embeddings, normalize).rows * total).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        def gradients(saved: tuple[Any, ...], upstream: tuple[Tensor, ...]) -> tuple[Any, ...]:
            embeddings, weight, total = saved
            rows = unit_rows(embeddings, ctx.normalize)
            grad_embeddings, grad_weight = None, None
            if ctx.needs_input_grad[0]:
                grad_embeddings = rows.input_gradient(upstream[0][:, None] * total)
            if ctx.needs_input_grad[1]:
                direction = (upstream[0][:, None] * rows.rows).sum(0)  # the same for every class
                parts = (
                    unit_rows(part, ctx.normalize).input_gradient(direction.expand_as(part))
                    for part in _parts(weight)
                )
                if is_batch_of_gradients(direction):  # which nothing can be written into
                    grad_weight = torch.cat(list(parts))
                else:
                    grad_weight = torch.empty_like(weight)
                    for written, part in zip(_parts(grad_weight), parts, strict=True):
                        written.copy_(part)
            return grad_embeddings, grad_weight

        with without_autocast(gradient.device.type):
            return (*once(ctx.saved_tensors, (gradient,), gradients), None)


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(max(1, _ENTRIES_AT_ONCE // weight.shape[1]))
