"""From the log-sum-exps of this process's rows to the loss of the batch that processes share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.distributed.collectives import gather_numbers
from circle_kernels.distributed.groups import group_name, group_of_name, resolve_group
from circle_kernels.distributed.headers import digest_of, exchange_headers
from circle_kernels.distributed.sharing import Sharing
from circle_kernels.logsumexp import present_logsumexp
from circle_kernels.operation.batch import Batch, Operation
from circle_kernels.operation.reductions import loss_of_sets, softplus
from circle_kernels.operation.registered import define
from circle_kernels.operation.shared.over_processes import shared_logsumexps


def shared_loss(
    batch: Batch, operation: Operation, sharing: Sharing, alike: Mapping[str, str]
) -> Tensor:  # a scalar, or (n,)
    """The loss of the rows of all processes, or unreduced losses of this one's.

    Every process has the same number, and the gradient of its own rows. ``alike`` has the scope
    and the reduction, among what has to be the same in all processes.
    """
    assert sharing.group is not None
    group, reduction = group_name(sharing.group), alike["reduction"]
    averaged = sharing.grad_reduction == "mean"
    lse_pos, lse_neg, told = shared_logsumexps(
        batch, operation, sharing, averaged=averaged, alike=alike
    )
    if alike["scope"] == "batch":
        own = torch.stack([present_logsumexp(lse, dim=0) for lse in (lse_pos, lse_neg)])
        of_processes = _differentiable_op(own, told, group).unbind(1)
        return loss_of_sets(*of_processes, in_self_mode=batch.ref_emb is None)
    exponents = lse_pos + lse_neg
    counted = exponents != -math.inf if reduction == "mean" else torch.ones_like(exponents)
    return _reduced(softplus(exponents), counted.sum(), told, group, reduction)


def reduced_over_processes(
    losses: Tensor,  # (n,) of this process
    number: Tensor | int,
    told: Tensor,
    sharing: Sharing,
    reduction: str,
) -> Tensor:
    """``reductions.reduce_losses`` over the rows of all processes.

    Gradients reach this process's losses, as many times as the processes' average divides them by.
    """
    assert sharing.group is not None
    if sharing.grad_reduction == "mean":
        losses = _TimesProcesses.apply(losses, group_name(sharing.group))
    number = torch.as_tensor(number, device=losses.device)
    return _reduced(losses, number, told, group_name(sharing.group), reduction)


def _reduced(losses: Tensor, number: Tensor, told: Tensor, group: str, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    own = torch.stack([losses.sum(), number.to(losses.dtype)])
    total, count = _differentiable_op(own, told, group).sum(0)
    return total if reduction == "sum" else total / count.detach().clamp_min(1)


def logsumexps_over_processes(
    lse_pos: Tensor,  # (C,) of rows that all processes have, over the columns of this one
    lse_neg: Tensor,  # (C,)
    sharing: Sharing,
    alike: Mapping[str, object],
) -> tuple[Tensor, Tensor]:
    """The same over the columns of all processes. Gradients reach this process's part."""
    assert sharing.group is not None
    rows, name = lse_pos.shape[0], group_name(sharing.group)
    own = torch.cat([lse_pos, lse_neg])
    if not torch.compiler.is_compiling():
        agreed = {**alike, "the number of rows that all processes have": rows}
        if sharing.same_sizes:
            word = torch.full((1,), digest_of(agreed), device=own.device)
            agree = (_numbers_op(word, word, name) == word).all()
            own = own + torch.where(agree, 0.0, math.nan).to(own.dtype)
        else:
            exchange_headers((), agreed, resolve_group(sharing.group))
    if sharing.grad_reduction == "mean":
        own = _TimesProcesses.apply(own, name)
    of_all = present_logsumexp(_differentiable_op(own, own.detach(), name), dim=0)
    return of_all[:rows], of_all[rows:]


class _TimesProcesses(torch.autograd.Function):
    """What it is given, with its gradient times the number of processes."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, group: str) -> Tensor:
        ctx.processes = dist.get_world_size(group_of_name(group))
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.processes, None


# What each process has, (K,), in the order of ranks: (processes, K). Gradients reach this process's
# alone. ``told`` is a result of the exchange before, without which compilers could have this one
# come first: that of a process without rows depends on nothing.
_numbers_op = define(
    "numbers_of_all",
    "(Tensor numbers, Tensor told, str group) -> Tensor",
    lambda numbers, told, group: gather_numbers(numbers, group_of_name(group)),
    whole=True,
    collective=True,
)


@torch.library.register_fake("circle_kernels::numbers_of_all")
def _numbers_fake(numbers: Tensor, told: Tensor, group: str) -> Tensor:
    return numbers.new_empty(dist.get_world_size(group_of_name(group)), numbers.shape[0])


class _NumbersOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, told: Tensor, group: str) -> Tensor:
        ctx.rank = dist.get_rank(group_of_name(group))
        return _numbers_op(numbers, told, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient[ctx.rank], None, None


_differentiable_op = define(
    "differentiable_numbers_of_all",
    "(Tensor numbers, Tensor told, str group) -> Tensor",
    lambda numbers, told, group: _NumbersOfAll.apply(numbers, told, group),
    whole=False,
)
