"""What the forward pass leaves for the backward, as one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.saved_bytes import HOOKS
from circle_kernels.backends.triton.conditions import conditions_on
from circle_kernels.backends.triton.operands import fill_sides, sort_by_label
from circle_kernels.backends.triton.plan import Layout, plan_layout, shape_of
from circle_kernels.backends.triton.sides import Side, ceil_div, laid_out, new_sides

# Each piece begins at a multiple of so many bytes, so that kernels find addresses as they expect.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Saved:
    """Pieces of the saved tensor; None is what is not in it."""

    logsumexps: Tensor  # (2, N) float32, of exponents; of a small batch (8, N)
    column_logsumexps: Tensor | None  # (2, M) float32: of columns that count pairs, too
    row_order: Tensor | None  # (N,) int64: where each row stands in the caller's order
    column_order: Tensor | None  # (M,) int64; in self mode the rows'
    sides: tuple[Side, Side] | None


class _Pieces:
    """Hands out a tensor of bytes piece by piece; without one it only counts."""

    def __init__(self, memory: Tensor | None) -> None:
        self.bytes = 0
        self._memory = memory
        self._views: dict[torch.dtype, Tensor] = {}

    def take(self, *shape: int, dtype: torch.dtype) -> Any:
        first = self.bytes
        self.bytes += ceil_div(math.prod(shape) * dtype.itemsize, _ALIGNMENT) * _ALIGNMENT
        if self._memory is None:
            return None
        if dtype not in self._views:
            self._views[dtype] = self._memory.view(dtype)
        view = self._views[dtype]
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        # One operator, where narrowing and two kinds of views would cost the host three.
        return view.as_strided(shape, strides, view.storage_offset() + first // dtype.itemsize)


def saved_shape(problem: PairProblem) -> tuple[int]:
    """The shape of the tensor that holds :class:`Saved`. Sizes may be symbolic."""
    return (_num_bytes(problem, _layout(problem)),)


def saves_labels(problem: PairProblem) -> bool:
    """Whether labels are saved, as those of a small batch are or of sides that are kept."""
    layout = _layout(problem)
    return layout.small or layout.keeps_sides


def _layout(problem: PairProblem) -> Layout:
    return plan_layout(shape_of(problem), conditions_on(problem.embeddings.device))


def new_saved(problem: PairProblem, layout: Layout) -> Tensor:
    """The tensor, not filled."""
    return problem.embeddings.new_empty(_num_bytes(problem, layout), dtype=torch.uint8)


def begin_saved(problem: PairProblem, layout: Layout) -> tuple[PairProblem, Tensor, Saved]:
    """The tensor with all in it but log-sum-exps, and its pieces; not for a small batch.

    Also the problem, :func:`laid_out` where sides are kept.
    """
    saved = new_saved(problem, layout)
    if layout.keeps_sides:
        problem = laid_out(problem)
    pieces = view_saved(saved, problem, layout)
    sort_by_label(problem, pieces.row_order, pieces.column_order)
    if pieces.sides is not None:
        fill_sides(problem, *pieces.sides)
    return problem, saved, pieces


def _num_bytes(problem: PairProblem, layout: Layout) -> int:
    pieces = _Pieces(None)
    _take_all(pieces, problem, layout)
    return pieces.bytes


def aligned(saved: Tensor, problem: PairProblem, layout: Layout) -> Tensor:
    """The tensor, or a copy where a hook has given it back somewhere else.

    Raises:
        RuntimeError: a tensor of another size.
    """
    wanted = _num_bytes(problem, layout)
    if saved.numel() != wanted:
        raise RuntimeError(
            f"circle_kernels: the backward pass wants {wanted} bytes from the forward pass, got "
            f"{saved.numel()}; {HOOKS}"
        )
    return saved if saved.storage_offset() % _ALIGNMENT == 0 else saved.clone()


def view_saved(saved: Tensor, problem: PairProblem, layout: Layout) -> Saved:
    """What lies where in the tensor; RuntimeError as :func:`aligned`."""
    return _take_all(_Pieces(aligned(saved, problem, layout)), problem, layout)


def _take_all(pieces: _Pieces, problem: PairProblem, layout: Layout) -> Saved:
    # Not len(), which would make a constant of a symbolic size.
    num_rows, num_columns = problem.embeddings.shape[0], problem.columns.shape[0]
    # Of a small batch also measures of the rows, and their labels.
    logsumexps = pieces.take(8 if layout.small else 2, num_rows, dtype=torch.float32)
    column_logsumexps = row_order = column_order = sides = None
    if problem.both_sides:
        column_logsumexps = pieces.take(2, num_columns, dtype=torch.float32)
    if layout.by_label:
        row_order = column_order = pieces.take(num_rows, dtype=torch.int64)
        if not problem.self_mode:
            column_order = pieces.take(num_columns, dtype=torch.int64)
    if layout.keeps_sides:
        sides = new_sides(problem, None, None, pieces.take, by_shape=True)
    return Saved(logsumexps, column_logsumexps, row_order, column_order, sides)
