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

from circle_kernels.backends.addressable import host_may_look, under_transforms
from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.problem import ROW_POSITIVE, result_dtype
from circle_kernels.operation.batch import Batch
from circle_kernels.operation.softplus_sums import (
    ROWS,
    SoftplusSums,
    positive_blocks,
    softplus_sums_op,
)


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
        own = torch.ones_like(batch.labels).cumsum(0) - 1  # fake where labels are
        return Positives(batch, normalize, own, batch.embeddings, batch.labels)

    def are_single(self) -> bool:
        """Whether the host may know that no row has more than one."""
        return host_may_look(self.numbers) and bool((self.numbers <= 1).all())

    def any_row(self, flags: Tensor) -> Tensor:  # of (n,) bool
        """Whether one is true, of rows in other processes, too."""
        return flags.any()

    @_once
    def numbers(self) -> Tensor:  # (n,) int64
        """How many positives each row has."""
        if self.batch.listed is not None:
            return ((self.batch.listed & ROW_POSITIVE) != 0).sum(1)
        of_rows, of_columns, classes = self._classes
        counts = of_rows.new_zeros(classes)
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
            if self.own_columns is not None and len(columns) > 0:
                own_rows = columns
                if columns is not rows:
                    own_rows = columns[self.own_columns.clamp_min(0)]
                own = (rows * own_rows).sum(1)
                total = total - own.masked_fill(~self._own_is_among, 0.0)
        return (total / self.numbers.clamp_min(1)).masked_fill(self.numbers == 0, 0.0)

    def softplus_sums(self, shifts: Tensor, gamma: float) -> Tensor:  # (n,)
        """``sum_p softplus(shift_i - gamma s_ip)`` over the positives of each row; differentiable,
        also with respect to the shifts (n,)."""
        rows, columns = self.sides
        given = (self.batch.labels, self.column_labels, self.own_columns, self.batch.listed)
        op = SoftplusSums.apply if under_transforms() else softplus_sums_op
        return op(rows, columns, *given, shifts, gamma)

    def indices(self) -> tuple[Tensor, Tensor]:  # (P,), (P,) int64
        """Rows and columns of all positive pairs, in the order of rows and then of columns."""
        given = (self.batch.labels, self.column_labels, self.own_columns, self.batch.listed)
        keys = [given[0].new_empty(0)]
        for rows, columns, positive in positive_blocks(*given):
            row, column = positive.nonzero(as_tuple=True)
            keys.append(rows[row] * len(self.columns) + columns[column])
        pairs = torch.cat(keys).sort().values
        return pairs // len(self.columns), pairs % len(self.columns)

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

    generate_vmap_rule = True

    @staticmethod
    def forward(columns: Tensor, listed: Tensor) -> Tensor:
        with without_autocast(columns.device.type):
            blocks = [_masked_sums(mask, columns) for _, mask in _positive_rows(listed)]
        return torch.cat([columns.new_zeros(0, columns.shape[1]), *blocks])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (listed,) = ctx.saved_tensors
        total = gradient.new_zeros(listed.shape[1], gradient.shape[1])
        with without_autocast(gradient.device.type):
            for rows, mask in _positive_rows(listed):
                total += _masked_sums(mask.T, gradient[rows])
        return total, None


def _masked_sums(mask: Tensor, values: Tensor) -> Tensor:  # (r, D) of (r, c) and (c, D)
    """The sum of the values (D,) that each row of the mask has. NaN stays with who has it: a
    product of 0 and NaN would spread it."""
    weights = mask.to(values.dtype)
    has_nan = weights @ values.isnan().any(1).to(values.dtype) > 0
    sums = weights @ values.nan_to_num(0.0, math.inf, -math.inf)
    return sums.masked_fill_(has_nan[:, None], math.nan)


def _positive_rows(listed: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for begin in range(0, listed.shape[0], ROWS):
        rows = slice(begin, begin + ROWS)
        yield rows, (listed[rows] & ROW_POSITIVE) != 0
