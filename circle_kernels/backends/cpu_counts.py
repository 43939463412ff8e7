"""The C++ kernel's part in exact evaluation: similarities of pairs, and counts over all columns.

As cpu.py, this module checks nothing and hands addresses on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels import _cpu


def exact_similarities(
    rows: Tensor,  # (R, D) float64, contiguous, on the grid
    columns: Tensor,  # (M, D) float64, contiguous, on the grid
    row_indices: Tensor,  # (P,) int64, contiguous
    column_indices: Tensor,  # (P,) int64, contiguous
) -> Tensor:  # (P,) float64
    """Similarities of single pairs."""
    similarities = rows.new_empty(len(row_indices))
    pairs = (row_indices.data_ptr(), column_indices.data_ptr(), len(row_indices))
    _cpu.exact_similarities(_sides(rows, columns), pairs, similarities.data_ptr())
    return similarities


def count_above(
    rows: Tensor,  # (R, D) float64, contiguous, on the grid
    columns: Tensor,  # (M, D) float64, contiguous, on the grid
    thresholds: Tensor,  # (T,) float64, contiguous, ascending within each row's run
    offsets: Tensor,  # (R + 1,) int64, contiguous
) -> tuple[Tensor, Tensor]:  # (T,) int64 each
    """How many columns are at least as similar to a row as each threshold, and more similar."""
    at_least, above = (torch.empty_like(thresholds, dtype=torch.int64) for _ in range(2))
    given = (thresholds.data_ptr(), offsets.data_ptr())
    _cpu.count_above(_sides(rows, columns), (*given, at_least.data_ptr(), above.data_ptr()))
    return at_least, above


def _sides(rows: Tensor, columns: Tensor) -> tuple[int, int, int, int, int, int]:
    threads = torch.get_num_threads()
    return (
        rows.data_ptr(),
        len(rows),
        columns.data_ptr(),
        len(columns),
        rows.shape[1],
        threads,
    )
