"""The class losses where each process holds some of the classes.

Every process gathers the embeddings of all, computes both log-sum-exps of each row over its own
classes with the fused operation, and merges them with those of the others: two numbers a row. Every
process then has the loss of the whole batch. Back go the merged log-sum-exps' gradients, times the
share that a process had in each, and one sum over processes for the embeddings; the gradient of a
process's class weights needs nothing from the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from circle_kernels.classes.arguments import NO_CLASS, ClassRows, checked_labels, checked_sides
from circle_kernels.classes.sampling import Sampling, positions_among, sample_classes, sample_size
from circle_kernels.classes.sampling import gather_rows as rows_of
from circle_kernels.classes.smoothing import similarity_sums, smoothing_terms
from circle_kernels.distributed.collectives import gather_rows
from circle_kernels.distributed.columns import Spread
from circle_kernels.distributed.gathered import GatheredRows
from circle_kernels.distributed.gradients import refuse_shards_in_ddp
from circle_kernels.distributed.headers import CALL, exchange_headers, failing_together
from circle_kernels.distributed.shards import add_to_gradient, check_shards, own_part
from circle_kernels.distributed.traced import refuse_to_be_traced
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.eager import logsumexps
from circle_kernels.operation.reductions import reduce_losses, rows_counted, softplus
from circle_kernels.options import GradReduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

_WRONG = NO_CLASS - 1  # the label of a row whose loss is to be NaN, as it travels


@dataclass(frozen=True)
class ShardedCall:
    """What is done with a batch and shards; see :class:`circle_kernels.ShardedClassCircleLoss`."""

    name: str  # of the class whose call it is
    operation: Operation
    rows: ClassRows
    sampling: Sampling
    grad_reduction: GradReduction  # of the backbone's gradients, after the backward pass

    def alike(self, embeddings: Tensor, weight: Tensor) -> dict[str, object]:
        """What has to be the same in all processes, with names for who reads of a difference."""
        formula = self.operation.formula
        return {
            CALL: self.name,
            "num_classes": weight.shape[0],
            "the number of columns of embeddings": embeddings.shape[1],
            "embeddings' dtype": embeddings.dtype,
            "weight's dtype": weight.dtype,
            "the kind of device": embeddings.device.type,
            "m": float(formula.m),
            "gamma": float(formula.gamma),
            "detach_weights": formula.detach_weights,
            "normalize": self.operation.normalize,
            "skip_below": self.operation.skip_below,
            "reduction": self.rows.reduction,
            "ignore_index": self.rows.ignore_index,
            "label_smoothing": self.rows.label_smoothing,
            "sample_rate, or training": self.sampling.rate,
            "sample_correction": self.sampling.correction,
            "grad_reduction": self.grad_reduction,
            # The backward pass is a collective call, too.
            "recording of gradients": torch.is_grad_enabled(),
            "weight's requires_grad": weight.requires_grad,
        }


def sharded_class_loss(
    embeddings: Tensor,  # (n, D), n may differ between processes and may be 0
    labels: Tensor,  # (n,)
    weight: Tensor,  # (C, D), a DTensor whose rows are spread over processes
    call: ShardedCall,
) -> Tensor:
    """The loss of the rows of all processes, or those of this process's rows.

    A collective call, as is its backward pass.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range, in this
            process or in another; or processes differ in what has to be alike.
        RuntimeError: DDP would synchronise the shards; the call is only traced; or a second
            derivative.
    """
    group = check_shards("weight", weight)
    if isinstance(embeddings, Tensor):  # what else it is is said below
        refuse_to_be_traced(call.name, embeddings)
    own = own_part(weight)
    with failing_together(call.name, group):
        refuse_shards_in_ddp(weight)
        embeddings, own = checked_sides(embeddings, labels, own)
        numbers, factors = checked_labels(
            labels, embeddings, weight.shape[0], call.rows.ignore_index
        )
        if call.sampling.sparse_grad and not weight.is_leaf:
            raise ValueError(
                "weight must be a leaf, as a parameter is, to be given a sparse gradient; use "
                "sparse_grad=False"
            )
    if factors is not None:
        numbers = numbers.masked_fill(factors.isnan(), _WRONG)
    wanted = torch.is_grad_enabled() and embeddings.requires_grad
    headers = exchange_headers(
        [len(embeddings), len(own), int(wanted)], call.alike(embeddings, weight), group
    )
    sizes, classes, wanting = (list(each) for each in zip(*headers, strict=True))
    if sum(classes) != weight.shape[0]:
        raise ValueError(
            f"weight must have all of its {weight.shape[0]} rows in the shards of the processes, "
            f"got {classes}"
        )
    if any(wanting) and not wanted:
        # The others wait in their backward pass for what our classes say of their rows.
        embeddings = embeddings.detach().requires_grad_()
    spread = Spread(tuple(sizes), group, ring=False)
    first_class = sum(classes[: spread.rank])
    all_labels = gather_rows(numbers, sizes, group)
    lse, sums = _own_statistics(embeddings, all_labels, weight, (call, spread, first_class))
    lse = _MergeShards.apply(lse, group)
    exponents = lse.sum(0)
    losses = softplus(exponents)
    if sums is not None:
        sums = _SumOverShards.apply(sums, group)
        formula = call.operation.formula
        terms = smoothing_terms(lse[0], sums, all_labels, weight.shape[0], formula)
        losses = losses + terms * call.rows.label_smoothing
    wrong = all_labels == _WRONG
    if call.rows.reduction == "none":
        losses = _OwnRows.apply(losses, spread)
        wrong = wrong[spread.own]
    loss = reduce_losses(
        losses, rows_counted(exponents, losses, call.rows.reduction), call.rows.reduction
    )
    factors = torch.ones_like(wrong, dtype=torch.float32).masked_fill(wrong, math.nan)
    return loss * (factors if call.rows.reduction == "none" else factors.prod())


def _own_statistics(
    embeddings: Tensor,  # (n, D)
    labels: Tensor,  # (N,) of all processes, in [0, C), NO_CLASS or _WRONG
    weight: Tensor,
    how: tuple[ShardedCall, Spread, int],  # with the first class of this process
) -> tuple[Tensor, Tensor | None]:  # (2, N), (N,)
    """Both log-sum-exps of the rows of all processes over the classes of this one, and, for label
    smoothing, the sums of their similarities."""
    call, spread, first_class = how
    own, sampling = own_part(weight), call.sampling
    factor = len(spread.sizes) if call.grad_reduction == "mean" else 1
    dtype = torch.promote_types(embeddings.dtype, own.dtype)
    rows = GatheredRows.apply(embeddings, spread, dtype, factor)
    labels = labels - first_class
    labels = labels.masked_fill((labels < 0) | (labels >= len(own)), NO_CLASS)
    correction = 0.0
    if sampling.takes_rows:
        size = len(own)
        if sampling.rate < 1:
            # Counted, though a device makes the host wait: room for the rows of all processes
            # would leave little to sample in each of many shards.
            here = int((labels != NO_CLASS).sum())
            size = sample_size(here, len(own), sampling.rate)
        sampled = sample_classes(labels, len(own), size, sampling.generator)
        labels = positions_among(labels, sampled)
        columns = _sampled_rows(weight, sampled, sparse_grad=sampling.sparse_grad)
        if sampling.correction and size > 0:
            correction = math.log(len(own) / size)
    else:
        columns = cast("DTensor", weight).to_local()
    batch = Batch(rows, labels, columns.to(dtype))
    lse_pos, lse_neg = logsumexps(batch, call.operation)
    # With one class nothing can be told apart, however smooth.
    smooths = call.rows.label_smoothing > 0 and weight.shape[0] > 1
    sums = similarity_sums(batch, call.operation) if smooths else None
    return torch.stack([lse_pos, lse_neg + correction]), sums


def _sampled_rows(weight: Tensor, sampled: Tensor, *, sparse_grad: bool) -> Tensor:
    if sparse_grad:
        return _RowsOfShard.apply(weight, sampled)
    return rows_of(cast("DTensor", weight).to_local(), sampled, sparse_grad=False)


class _MergeShards(torch.autograd.Function):
    """Log-sum-exps over the classes of all processes, from those over the classes of each."""

    @staticmethod
    def forward(ctx: Any, lse: Tensor, group: ProcessGroup) -> Tensor:  # (2, N) of (2, N)
        if lse.numel() == 0:  # in all processes
            ctx.save_for_backward(lse)
            return lse.clone()
        highest = lse.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        # No process has such a class, so that all summands are 0; or one that is too large.
        highest.masked_fill_(highest.isinf(), 0)
        share = (lse - highest).exp_()
        total = share.clone()
        dist.all_reduce(total, group=group)
        ctx.save_for_backward((share / total).masked_fill_(total == 0, 0))
        return highest.add_(total.log_())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (share,) = ctx.saved_tensors
        return share * gradient, None


class _SumOverShards(torch.autograd.Function):
    """The sum of what all processes have, each of which has the gradient of the sum already."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: ProcessGroup) -> Tensor:  # (N,) of (N,)
        total = own.clone()
        if total.numel() > 0:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient, None


class _OwnRows(torch.autograd.Function):
    """This process's rows of a vector that all have, each of which gets the gradients of all."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, spread: Spread) -> Tensor:
        ctx.spread = spread
        return vector[spread.own].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gather_rows(gradient, ctx.spread.sizes, ctx.spread.group), None


class _RowsOfShard(torch.autograd.Function):
    """Rows of this process's shard, which gets its sparse gradient from here and not by autograd.

    Autograd can neither bring a sparse gradient to a DTensor nor add two of them.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(rows)
        return own_part(weight).index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        shape = own_part(ctx.weight).shape
        sparse = torch.sparse_coo_tensor(
            rows[None], gradient, shape, check_invariants=False, is_coalesced=True
        )
        add_to_gradient(ctx.weight, sparse)
        return None, None
