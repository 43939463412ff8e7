"""From the log-sum-exps of this process's rows to the loss of the batch that processes share."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.distributed.collectives import gather_numbers
from circle_kernels.distributed.groups import Group, group_name, group_of_name
from circle_kernels.operation.reductions import softplus
from circle_kernels.operation.registered import define


def shared_row_losses(
    lse_pos: Tensor,  # (n,)
    lse_neg: Tensor,  # (n,)
    reduction: str,
    told: Tensor,  # as for numbers_of_all
    group: Group,
) -> Tensor:  # a scalar, or (n,)
    """``softplus`` of the sum of each row, reduced over the rows of all processes.

    Every process has the same number, and its gradient with respect to its own rows. Of unreduced
    losses each has its own rows'.
    """
    exponents = lse_pos + lse_neg
    losses = softplus(exponents)
    if reduction == "none":
        return losses
    counted = exponents != -math.inf if reduction == "mean" else torch.ones_like(exponents)
    own = torch.stack([losses.sum(), counted.sum().to(losses.dtype)])
    total, count = numbers_of_all(own, told, group).sum(0)
    return total if reduction == "sum" else total / count.detach().clamp_min(1)


def numbers_of_all(
    numbers: Tensor,  # (K,)
    told: Tensor,
    group: Group,
) -> Tensor:  # (processes, K)
    """What each process has, in the order of ranks. Gradients reach this process's alone.

    ``told`` is a result of the exchange before, without which compilers could have this one come
    first: that of a process without rows depends on nothing.
    """
    return _differentiable_op(numbers, told, group_name(group))


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
