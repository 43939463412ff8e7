"""``sum_p softplus(shift_i - gamma s_ip)`` over the positives p of each row, as ops, by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.problem import ROW_POSITIVE
from circle_kernels.operation.batch import owned
from circle_kernels.operation.differentiable import no_second_derivative, one_by_one
from circle_kernels.operation.reductions import softplus
from circle_kernels.operation.registered import define

# Rows and columns of a block: a few megabytes.
ROWS, _COLUMNS = 256, 2048


def positive_blocks(
    labels: Tensor,  # (n,)
    column_labels: Tensor,  # (m,)
    own_columns: Tensor | None,  # (n,)
    listed: Tensor | None,  # (n, m)
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows, columns and which of their pairs (r, c) are positive, of all blocks that may have one.

    On a device the host waits to know where they begin and end.
    """
    values, row_order = labels.sort(stable=True)
    column_values, column_order = column_labels.sort(stable=True)
    begins = range(0, len(labels), ROWS)
    ends = [min(begin + ROWS, len(labels)) for begin in begins]
    places = [list(begins), [end - 1 for end in ends]]
    edges = values[torch.tensor(places, device=values.device, dtype=torch.int64)]
    first = torch.searchsorted(column_values, edges[0].contiguous()).tolist()
    last = torch.searchsorted(column_values, edges[1].contiguous(), right=True).tolist()
    for begin, end, first_column, last_column in zip(begins, ends, first, last, strict=True):
        rows = row_order[begin:end]
        for column in range(first_column, last_column, _COLUMNS):
            columns = column_order[column : min(column + _COLUMNS, last_column)]
            if listed is None:
                positive = labels[rows][:, None] == column_labels[columns][None, :]
            else:
                positive = (listed[rows][:, columns] & ROW_POSITIVE) != 0
            if own_columns is not None:
                positive &= own_columns[rows][:, None] != columns[None, :]
            yield rows, columns, positive


def _forward(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    column_labels: Tensor,
    own_columns: Tensor | None,
    listed: Tensor | None,
    shifts: Tensor,
    gamma: float,
) -> Tensor:
    sums = torch.zeros_like(shifts)
    for which, others, positive in positive_blocks(labels, column_labels, own_columns, listed):
        exponents = shifts[which][:, None] - gamma * (rows[which] @ columns[others].T)
        terms = softplus(exponents).masked_fill_(~positive, 0.0)
        sums.index_add_(0, which, terms.sum(1))
    return sums


def _backward(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    column_labels: Tensor,
    own_columns: Tensor | None,
    listed: Tensor | None,
    shifts: Tensor,
    gamma: float,
    gradient: Tensor,  # (n,)
) -> tuple[Tensor, Tensor, Tensor]:
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    grad_shifts = torch.zeros_like(shifts)
    # Weights are NaN where similarities of positives are. Times the 0 of others NaN would spread.
    of_rows, of_columns = (each.nan_to_num(0.0, math.inf, -math.inf) for each in (rows, columns))
    for which, others, positive in positive_blocks(labels, column_labels, own_columns, listed):
        exponents = shifts[which][:, None] - gamma * (rows[which] @ columns[others].T)
        weights = exponents.sigmoid_().mul_(gradient[which][:, None]).masked_fill_(~positive, 0.0)
        grad_shifts.index_add_(0, which, weights.sum(1))
        weights *= -gamma
        grad_rows.index_add_(0, which, weights @ of_columns[others])
        grad_columns.index_add_(0, others, weights.T @ of_rows[which])
    return grad_rows, grad_columns, grad_shifts


def _uncast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Products in the dtype that they are given in, also under autocast."""

    def of(rows: Tensor, *arguments: Any) -> Any:
        with without_autocast(rows.device.type):
            return function(rows, *arguments)

    return of


_PAIRS = (
    "Tensor rows, Tensor columns, Tensor labels, Tensor column_labels, Tensor? own_columns, "
    "Tensor? listed, Tensor shifts, float gamma"
)
_forward_op = define(
    "positive_softplus_forward", f"({_PAIRS}) -> Tensor", _uncast(_forward), whole=True
)
_backward_op = define(
    "positive_softplus_backward",
    f"({_PAIRS}, Tensor gradient) -> (Tensor, Tensor, Tensor)",
    _uncast(_backward),
    whole=True,
)


@torch.library.register_fake("circle_kernels::positive_softplus_forward")
def _forward_fake(*arguments: Any) -> Tensor:
    return torch.empty_like(arguments[6])


@torch.library.register_fake("circle_kernels::positive_softplus_backward")
def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, shifts = arguments[0], arguments[1], arguments[6]
    return torch.empty_like(rows), torch.empty_like(columns), torch.empty_like(shifts)


torch.library.register_vmap(_forward_op, one_by_one(_forward_op))
torch.library.register_vmap(_backward_op, one_by_one(_backward_op))


class SoftplusSums(torch.autograd.Function):
    """The op with its gradient."""

    generate_vmap_rule = True
    forward: Callable[..., Any] = staticmethod(_forward_op)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, columns, *of_users, listed, shifts, ctx.gamma = inputs
        ctx.save_for_backward(rows, columns, *map(owned, of_users), listed, shifts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        of_rows, of_columns, of_shifts = _Backward.apply(*ctx.saved_tensors, ctx.gamma, gradient)
        return of_rows, of_columns, None, None, None, None, of_shifts, None


class _Backward(torch.autograd.Function):
    """The backward op, which cannot be differentiated."""

    generate_vmap_rule = True
    forward = staticmethod(_backward_op)
    backward = staticmethod(no_second_derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept, since nothing is differentiated again."""


# As compilers find it: they do not look into autograd functions that are called by other names.
softplus_sums_op: Any = define(
    "positive_softplus",
    f"({_PAIRS}) -> Tensor",
    lambda *arguments: SoftplusSums.apply(*arguments),
    whole=False,
)
