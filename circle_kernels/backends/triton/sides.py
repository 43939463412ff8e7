"""The two sides of a problem, as kernels take them: where their numbers lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.problem import PairProblem
from circle_kernels.backends.triton.primitives import STATISTICS_BLOCK

# Offsets within a tile of 256 rows are 32-bit.
MAX_STRIDE = 2**22
# Scales and labels are padded to a multiple of this, which every block of rows divides.
ROW_PADDING = STATISTICS_BLOCK.value
# Strides and depths in multiples of this let Triton load 16 bytes at a time in every dtype.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Side:
    """The embeddings or the references, ready for the kernels.

    ``operand / operand_norms`` are the normalised rows. The operand is the input itself or, as
    :func:`new_sides` decides, a copy, the depth padded by zeros.
    """

    operand: Tensor  # (N, padded depth), unit stride along the depth
    scales: Tensor  # (padded N,) float32, root_scale / operand_norms but for _BALANCE
    operand_norms: Tensor  # (N,) float32, in NORM_UNIT
    norms: Tensor  # (N,) float32, of the input, in NORM_UNIT
    labels: Tensor  # (padded N,) int64
    order: Tensor | None  # (N,) int64: the input's rows in this side's order; None if the same
    normalize: bool
    depth: int  # of the input
    dtype: torch.dtype  # of the input, and so of its gradient

    def __len__(self) -> int:
        return len(self.operand)


def ceil_div(number: int, by: int) -> int:
    """The quotient, rounded up; ``triton.cdiv`` is for kernels and takes the host microseconds."""
    return (number + by - 1) // by


def operand_layout(problem: PairProblem) -> tuple[torch.dtype, int]:
    """Dtype and depth of both operands."""
    dtype = problem.embeddings.dtype
    # Unnormalised float16 has no bound that would keep its weights in float16's range.
    widen = dtype == torch.float16 and not problem.normalize
    return torch.float32 if widen else dtype, aligned_depth(problem.embeddings.shape[1])


def aligned_depth(depth: int) -> int:
    """Depth of an operand: that of the input, padded so that rows load in wide pieces."""
    return ceil_div(depth, _ALIGNMENT) * _ALIGNMENT


def new_sides(
    problem: PairProblem,
    row_order: Tensor | None,  # (N,) int64: what comes where; None as given
    column_order: Tensor | None,  # (M,) int64
    allocate: Callable[..., Tensor],
    *,
    by_shape: bool = False,
) -> tuple[Side, Side]:
    """Both sides of a problem in their orders, not filled; in self mode the same one twice.

    ``allocate(*shape, dtype=dtype)`` makes their tensors. ``by_shape`` takes :func:`laid_out`
    embeddings for granted, so that strides decide nothing.
    """
    row_copy = _needs_copy(problem, problem.embeddings, row_order, by_shape)
    if problem.self_mode:
        rows = _new_side(problem, problem.embeddings, row_order, row_copy, allocate)
        return rows, rows
    column_copy = _needs_copy(problem, problem.columns, column_order, by_shape)
    if problem.normalize and not row_copy and not column_copy:
        # Products of two large rows as they are would overflow. The smaller side is copied.
        row_copy = problem.embeddings.shape[0] <= problem.columns.shape[0]
        column_copy = not row_copy
    return (
        _new_side(problem, problem.embeddings, row_order, row_copy, allocate),
        _new_side(problem, problem.columns, column_order, column_copy, allocate),
    )


def laid_out(problem: PairProblem) -> PairProblem:
    """The problem with embeddings whose rows load in wide pieces, if their depth lets them.

    Of what the forward pass keeps neither size nor place can depend on strides: the backward pass
    may get the same numbers in others, as a copy has that was made of a slice.
    """

    def rows(embeddings: Tensor) -> Tensor:
        if embeddings.shape[1] % _ALIGNMENT or _loads_wide(embeddings):
            return embeddings
        return embeddings.clone(memory_format=torch.contiguous_format)

    if problem.ref_emb is None or problem.embeddings.dtype == torch.float16:
        return problem  # copied whatever their strides
    return problem._replace(embeddings=rows(problem.embeddings), ref_emb=rows(problem.ref_emb))


def _needs_copy(
    problem: PairProblem, embeddings: Tensor, order: Tensor | None, by_shape: bool
) -> bool:
    # A batch compared with itself is small beside its pairs, and its weights hold scales twice.
    return (
        order is not None
        or problem.self_mode
        or embeddings.dtype == torch.float16
        or not (embeddings.shape[1] % _ALIGNMENT == 0 if by_shape else _loads_wide(embeddings))
    )


def _new_side(
    problem: PairProblem,
    embeddings: Tensor,
    order: Tensor | None,
    copy: bool,
    allocate: Callable[..., Tensor],
) -> Side:
    num_rows, depth = embeddings.shape
    dtype = embeddings.dtype
    operand_dtype, padded_depth = operand_layout(problem)
    padded_rows = ceil_div(num_rows, ROW_PADDING) * ROW_PADDING
    norms = allocate(num_rows, dtype=torch.float32)
    scales = allocate(padded_rows, dtype=torch.float32)
    labels = allocate(padded_rows, dtype=torch.int64)
    operand, operand_norms = embeddings, norms
    if copy:
        operand = allocate(num_rows, padded_depth, dtype=operand_dtype)
        if problem.normalize:
            operand_norms = allocate(num_rows, dtype=torch.float32)
    return Side(
        operand, scales, operand_norms, norms, labels, order, problem.normalize, depth, dtype
    )


def pair_arguments(rows: Side, columns: Side) -> dict[str, Any]:
    """Both sides under the names that every tile kernel gives them."""
    return {
        "rows_ptr": rows.operand,
        "row_labels_ptr": rows.labels,
        "row_scales_ptr": rows.scales,
        "columns_ptr": columns.operand,
        "column_labels_ptr": columns.labels,
        "column_scales_ptr": columns.scales,
        "num_rows": len(rows),
        "num_columns": len(columns),
        "depth": rows.operand.shape[1],
        "row_stride": rows.operand.stride(0),
        "column_stride": columns.operand.stride(0),
    }


def _loads_wide(embeddings: Tensor) -> bool:
    """Whether rows can be loaded in pieces of 16 bytes; a copy costs less than narrow loads."""
    return (
        embeddings.stride(1) == 1
        and embeddings.stride(0) % _ALIGNMENT == 0
        and embeddings.stride(0) <= MAX_STRIDE
        and embeddings.shape[1] % _ALIGNMENT == 0
        and embeddings.storage_offset() % _ALIGNMENT == 0
    )
