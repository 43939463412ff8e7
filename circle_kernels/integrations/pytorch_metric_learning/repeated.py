"""Pairs that a list may hold several times, each of which counts: as NT-Xent takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_NUMBERS = 2**20  # gathered at a time, or in a block of the matrix of similarities


def pair_similarities(
    rows: Tensor,  # (N, D) over their norms
    columns: Tensor,  # (M, D)
    places: tuple[Tensor, Tensor],  # (P,), (P,) rows and columns
) -> Tensor:  # (P,)
    """The similarity of each listed pair; differentiable, in chunks."""
    return _Similarities.apply(rows, columns, *places)


class _Similarities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, row: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, row, column)
        products = ((rows[row[at]] * columns[column[at]]).sum(1) for at in _chunks(row, rows))
        return torch.cat([rows.new_empty(0), *products])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, row, column = ctx.saved_tensors
        of_rows, of_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for at in _chunks(row, rows):
            weights = gradient[at, None]
            of_rows = of_rows.index_add(0, row[at], columns[column[at]] * weights)
            of_columns = of_columns.index_add(0, column[at], rows[row[at]] * weights)
        return of_rows, of_columns, None, None


def _chunks(pairs: Tensor, side: Tensor) -> list[slice]:
    size = max(_NUMBERS // side.shape[1], 1)
    return [slice(begin, begin + size) for begin in range(0, len(pairs), size)]


def repeated_logsumexp(
    rows: Tensor,  # (N, D) over their norms
    columns: Tensor,  # (M, D)
    pairs: tuple[Tensor, Tensor],  # (K,) row * M + column of each pair, ascending; (K,) how often
    gamma: float,
) -> Tensor:  # (N,)
    """``log sum_k times_k exp(gamma s_k)`` over the listed pairs k of each row, -inf of none;
    differentiable, with a block of similarities in memory."""
    return _RepeatedLogSumExp.apply(rows, columns, *pairs, gamma)


class _RepeatedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, pairs: Tensor, times: Tensor, gamma: float
    ) -> Tensor:
        blocks = _exponents(rows, columns, pairs, times, gamma)
        sums = torch.cat([rows.new_empty(0), *(exponents.logsumexp(1) for _, exponents in blocks)])
        ctx.gamma = gamma
        ctx.save_for_backward(rows, columns, pairs, times, sums)
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, pairs, times, sums = ctx.saved_tensors
        # Of a row without pairs all exponents are -inf.
        sums = torch.where(sums == -math.inf, 0.0, sums)
        of_rows, of_columns = [rows.new_empty(0, rows.shape[1])], torch.zeros_like(columns)
        for at, exponents in _exponents(rows, columns, pairs, times, ctx.gamma):
            weights = (exponents - sums[at, None]).exp() * (ctx.gamma * gradient[at, None])
            of_rows.append(weights @ columns)
            of_columns = of_columns + weights.T @ rows[at]
        return torch.cat(of_rows), of_columns, None, None, None


def _exponents(
    rows: Tensor, columns: Tensor, pairs: Tensor, times: Tensor, gamma: float
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, and ``gamma s + log(times)`` of their pairs, -inf of those not listed."""
    size = max(_NUMBERS // max(len(columns), 1), 1)
    begins = list(range(0, len(rows), size))
    edges = torch.tensor([*begins, len(rows)], device=pairs.device) * len(columns)
    bounds = torch.searchsorted(pairs, edges).tolist()
    for block, begin in enumerate(begins):
        at, listed = slice(begin, begin + size), slice(*bounds[block : block + 2])
        similarity = rows[at] @ columns.T
        counts = torch.zeros_like(similarity)
        places = pairs[listed] - begin * len(columns)
        counts.view(-1)[places] = times[listed].to(counts.dtype)
        exponents = gamma * similarity + counts.log()
        yield at, torch.where(counts > 0, exponents, -math.inf)
