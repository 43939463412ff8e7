"""What losses ask of a row's positives beside their log-sum-exp: how many, their mean, each one.

Rows have few positives, so that in label order these lie in blocks along the diagonal: products of
all blocks take little beside the one over all pairs, and one block is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.backends.addressable import host_may_look
from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.problem import ROW_POSITIVE, result_dtype
from circle_kernels.operation.batch import Batch
from circle_kernels.operation.differentiable import no_second_derivative
from circle_kernels.operation.reductions import softplus
from circle_kernels.operation.registered import define

# Rows and columns of a block: a few megabytes.
_ROWS, _COLUMNS = 256, 2048


def _once(function: Callable[[Positives], Any]) -> Any:
    """A property that is computed once; compilers do not look into ``functools.cached_property``,
    which has a lock."""
    name = function.__name__

    def get(positives: Positives) -> Any:
        if name not in positives.known:
            positives.known[name] = function(positives)
        return positives.known[name]

    return property(get, doc=function.__doc__)


@dataclass(frozen=True)
class Positives:
    """The positive pairs of a batch's rows."""

    batch: Batch
    normalize: bool
    own_columns: Tensor | None  # (n,): the column that is each row itself, or -1
    columns: Tensor  # (m, D) as they are given
    column_labels: Tensor  # (m,)
    known: dict[str, Any] = field(default_factory=dict, init=False)  # what has been computed

    @staticmethod
    def of(batch: Batch, normalize: bool) -> Positives:
        """Those of a batch that is all here."""
        if batch.ref_emb is not None and batch.ref_labels is not None:
            sides = (batch.ref_emb, batch.ref_labels)
            return Positives(batch, normalize, batch.own_columns, *sides)
        own = torch.arange(batch.labels.shape[0], device=batch.labels.device)
        return Positives(batch, normalize, own, batch.embeddings, batch.labels)

    def are_single(self) -> bool:
        """Whether the host may know that no row has more than one."""
        return host_may_look(self.numbers) and bool((self.numbers <= 1).all())

    @_once
    def numbers(self) -> Tensor:  # (n,) int64
        """How many positives each row has."""
        if self.batch.listed is not None:
            return ((self.batch.listed & ROW_POSITIVE) != 0).sum(1)
        of_rows, of_columns, classes = self._classes
        counts = torch.zeros(classes, dtype=torch.int64, device=of_rows.device)
        counts.index_add_(0, of_columns, torch.ones_like(of_columns))
        numbers = counts[of_rows]
        return numbers if self.own_columns is None else numbers - self._own_is_among.to(torch.int64)

    def mean_similarity(self) -> Tensor:  # (n,)
        """The mean similarity of each row's positives, 0 of none; differentiable."""
        rows, columns = self.sides
        if self.batch.listed is not None:
            sums = _PositiveSums.apply(columns, self.batch.listed)
            total = (rows * sums).sum(1)
        else:
            of_rows, of_columns, classes = self._classes
            sums = rows.new_zeros(classes, rows.shape[1]).index_add(0, of_columns, columns)
            total = (rows * sums[of_rows]).sum(1)
            if self.own_columns is not None:
                own_rows = columns
                if columns is not rows:
                    own_rows = columns[self.own_columns.clamp_min(0)]
                own = (rows * own_rows).sum(1)
                total = total - torch.where(self._own_is_among, own, 0.0)
        return torch.where(self.numbers > 0, total / self.numbers.clamp_min(1), 0.0)

    def softplus_sums(self, shifts: Tensor, gamma: float) -> Tensor:  # (n,)
        """``sum_p softplus(shift_i - gamma s_ip)`` over the positives of each row; differentiable,
        also with respect to the shifts (n,)."""
        rows, columns = self.sides
        given = (self.batch.labels, self.column_labels, self.own_columns, self.batch.listed)
        return _differentiable_op(rows, columns, *given, shifts, gamma)

    @_once
    def sides(self) -> tuple[Tensor, Tensor]:
        """Rows and columns as similarities are the products of; differentiable."""
        rows = unit_rows(self.batch.embeddings, self.normalize)
        same = self.columns is self.batch.embeddings
        return rows, rows if same else unit_rows(self.columns, self.normalize)

    @_once
    def _classes(self) -> tuple[Tensor, Tensor, int]:
        """Numbers of the labels of rows and of columns, and one more than the largest may be."""
        same = self.column_labels is self.batch.labels
        labels = self.batch.labels if same else torch.cat([self.batch.labels, self.column_labels])
        values, order = labels.sort()
        ascending = F.pad((values[1:] != values[:-1]).to(torch.int64).cumsum(0), (1, 0))
        numbers = torch.empty_like(order).scatter_(0, order, ascending[: len(order)])
        if same:
            return numbers, numbers, len(labels)
        of_rows, of_columns = numbers.split([len(self.batch.labels), len(self.column_labels)])
        return of_rows, of_columns, len(labels)

    @_once
    def _own_is_among(self) -> Tensor:  # (n,) bool
        """Whether a row's own copy has its label, and would else be one of its positives."""
        own = self.own_columns
        assert own is not None
        if len(self.column_labels) == 0:
            return torch.zeros_like(own, dtype=torch.bool)
        return (own >= 0) & (self.column_labels[own.clamp_min(0)] == self.batch.labels)


def unit_rows(embeddings: Tensor, normalize: bool) -> Tensor:
    """What ``backends.rows.unit_rows`` has, by operations that torch differentiates."""
    rows = embeddings.to(result_dtype(embeddings.dtype))
    if not normalize:
        return rows.masked_fill(rows.isinf(), math.nan)
    # Large entries have squares that overflow; times a power of two they point the same way.
    octaves = math.frexp(torch.finfo(rows.dtype).max)[1] // 2
    large = rows.detach().abs().amax(1, keepdim=True) >= 2.0 ** (octaves - 16)
    return F.normalize(torch.where(large, rows * 2.0 ** -(octaves + 16), rows), dim=1)


class _PositiveSums(torch.autograd.Function):
    """The sum (n, D) of the columns (m, D) that are listed as each row's positives."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, listed: Tensor) -> Tensor:
        ctx.save_for_backward(listed)
        with without_autocast(columns.device.type):
            blocks = [mask.to(columns.dtype) @ columns for _, mask in _positive_rows(listed)]
        return torch.cat([columns.new_zeros(0, columns.shape[1]), *blocks])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (listed,) = ctx.saved_tensors
        total = gradient.new_zeros(listed.shape[1], gradient.shape[1])
        with without_autocast(gradient.device.type):
            for rows, mask in _positive_rows(listed):
                total.addmm_(mask.to(gradient.dtype).T, gradient[rows])
        return total, None


def _positive_rows(listed: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for begin in range(0, listed.shape[0], _ROWS):
        rows = slice(begin, begin + _ROWS)
        yield rows, (listed[rows] & ROW_POSITIVE) != 0


def _blocks(
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
    begins = range(0, len(labels), _ROWS)
    ends = [min(begin + _ROWS, len(labels)) for begin in begins]
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
    for which, others, positive in _blocks(labels, column_labels, own_columns, listed):
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
    for which, others, positive in _blocks(labels, column_labels, own_columns, listed):
        exponents = shifts[which][:, None] - gamma * (rows[which] @ columns[others].T)
        weights = exponents.sigmoid_().mul_(gradient[which][:, None]).masked_fill_(~positive, 0.0)
        grad_shifts.index_add_(0, which, weights.sum(1))
        weights *= -gamma
        grad_rows.index_add_(0, which, weights @ columns[others])
        grad_columns.index_add_(0, others, weights.T @ rows[which])
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


class _SoftplusSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.gamma = arguments
        ctx.save_for_backward(*tensors)
        return _forward_op(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        of_rows, of_columns, of_shifts = _Backward.apply(*ctx.saved_tensors, ctx.gamma, gradient)
        return of_rows, of_columns, None, None, None, None, of_shifts, None


class _Backward(torch.autograd.Function):
    """The backward op, which cannot be differentiated."""

    backward = staticmethod(no_second_derivative)

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _backward_op(*arguments)


# As compilers find it: they do not look into autograd functions that are called by other names.
_differentiable_op = define(
    "positive_softplus",
    f"({_PAIRS}) -> Tensor",
    lambda *arguments: _SoftplusSums.apply(*arguments),
    whole=False,
)
