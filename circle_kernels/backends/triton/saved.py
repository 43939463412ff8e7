"""What the forward pass keeps for the backward, as one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from circle_kernels.backends.interface import PairProblem
from circle_kernels.backends.triton.plan import Walk, plan_problem

# Each piece begins at a multiple of so many floats, so that kernels find addresses as they expect.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Saved:
    """Views of the saved tensor; orders are None where sides keep the caller's."""

    logsumexps: Tensor  # (2, N) float32, of exponents
    row_order: Tensor | None  # (N,) int64: where each row stands in the caller's order
    column_order: Tensor | None  # (M,) int64; in self mode the rows'
    products: Tensor | None  # (padded N, padded M) float32, if kept: plan.Walk.kept


def saved_shape(problem: PairProblem) -> tuple[int]:
    """The shape of the tensor that holds :class:`Saved`."""
    # Nothing is planned where there is nothing to compare.
    if min(len(problem.embeddings), len(problem.columns)) == 0:
        return (0,)
    return (sum(_lengths(problem, plan_problem(problem))),)


def new_saved(problem: PairProblem, walk: Walk) -> Tensor:
    """The tensor, not filled."""
    return problem.embeddings.new_empty(sum(_lengths(problem, walk)), dtype=torch.float32)


def view_saved(saved: Tensor, problem: PairProblem, walk: Walk) -> Saved:
    """What lies where in the tensor."""
    num_rows, num_columns = len(problem.embeddings), len(problem.columns)
    logsumexps, row_order, column_order, kept = saved.split(_lengths(problem, walk))
    rows = row_order.view(torch.int64).narrow(0, 0, num_rows) if len(row_order) else None
    columns = rows
    if len(column_order):
        columns = column_order.view(torch.int64).narrow(0, 0, num_columns)
    products = kept.view(walk.kept) if len(kept) else None
    return Saved(logsumexps.narrow(0, 0, 2 * num_rows).view(2, num_rows), rows, columns, products)


def kept_arguments(keeps: Saved) -> dict[str, Any]:
    """Kept products under the names that kernels give them."""
    # A pointer that is never followed still has to be a tensor.
    products = keeps.logsumexps if keeps.products is None else keeps.products
    return {"kept_ptr": products, "kept_stride": products.stride(0)}


def _lengths(problem: PairProblem, walk: Walk) -> list[int]:
    """Floats of each piece."""
    num_rows, num_columns = len(problem.embeddings), len(problem.columns)
    floats = [
        2 * num_rows,
        2 * num_rows if walk.by_label else 0,
        2 * num_columns if walk.by_label and not problem.self_mode else 0,
        math.prod(walk.kept),
    ]
    return [triton.cdiv(length, _ALIGNMENT) * _ALIGNMENT for length in floats]
