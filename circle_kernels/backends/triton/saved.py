"""What the forward pass keeps for the backward, as one tensor."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from circle_kernels.backends.interface import PairProblem
from circle_kernels.backends.triton.launch import num_multiprocessors
from circle_kernels.backends.triton.plan import sorts_by_label

# Each piece begins at a multiple of so many floats, so that kernels find addresses as they expect.
_ALIGNMENT = 16


def saved_shape(problem: PairProblem) -> tuple[int]:
    """Both log-sum-exps of exponents of each row, and the label order of sides that are sorted.

    Sizes may be symbolic.
    """
    return (sum(_lengths(problem)),)


def view_saved(
    saved: Tensor, problem: PairProblem
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # (2, N) float32, (N,) int64, (M,) int64
    """The log-sum-exps, and for rows and columns where each stands in the caller's order.

    Orders are None where sides keep the caller's; in self mode both are the same.
    """
    num_rows, num_columns = len(problem.embeddings), len(problem.columns)
    pieces = saved.split(_lengths(problem))
    logsumexps = pieces[0].narrow(0, 0, 2 * num_rows).view(2, num_rows)
    if len(pieces) == 1:
        return logsumexps, None, None
    row_order = pieces[1].view(torch.int64).narrow(0, 0, num_rows)
    if problem.self_mode:
        return logsumexps, row_order, row_order
    return logsumexps, row_order, pieces[2].view(torch.int64).narrow(0, 0, num_columns)


def _lengths(problem: PairProblem) -> list[int]:
    """Floats of each piece."""
    # Not len(), which would make a constant of a symbolic size.
    num_rows, num_columns = problem.embeddings.shape[0], problem.columns.shape[0]
    entries = [num_rows]
    if sorts_by_label(num_rows, num_columns, num_multiprocessors(problem.embeddings.device)):
        entries += [num_rows] if problem.self_mode else [num_rows, num_columns]
    return [triton.cdiv(2 * length, _ALIGNMENT) * _ALIGNMENT for length in entries]
