"""Exact similarities, and how many reach thresholds, by the C++ kernel.

What :mod:`circle_kernels.evaluation` counts by, on CPU tensors. Nothing is checked here: rows and
columns are (R, D) and (M, D) float64, multiples of 2^-g with g = 52 - ceil(log2(D) / 2), with norms
of at most 1 but for rounding. Results are the same at every instruction set and with any number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circle_kernels.backends.cpu import loaded


def exact_similarities(
    rows: Tensor,  # (R, D) float64
    columns: Tensor,  # (M, D) float64
    row_indices: Tensor,  # (P,) int64
    column_indices: Tensor,  # (P,) int64
) -> Tensor:  # (P,) float64
    """Similarities of single pairs."""
    # Bound to names: the extension sees addresses only, which do not keep a tensor alive.
    rows, columns = rows.contiguous(), columns.contiguous()
    row_indices, column_indices = row_indices.contiguous(), column_indices.contiguous()
    similarities = torch.empty(len(row_indices), dtype=torch.float64, device="cpu")
    loaded().exact_similarities(
        (rows.data_ptr(), columns.data_ptr(), rows.shape[1]),
        (
            row_indices.data_ptr(),
            column_indices.data_ptr(),
            len(row_indices),
            similarities.data_ptr(),
        ),
        torch.get_num_threads(),
    )
    return similarities


def count_above(
    rows: Tensor,  # (R, D) float64
    columns: Tensor,  # (M, D) float64; the same tensor as rows takes half of the time
    thresholds: Tensor,  # (T,) float64, ascending within each row's run
    offsets: Tensor,  # (R + 1,) int64: row i's run begins at offsets[i] and ends at offsets[i + 1]
    advance: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:  # (T,) int64 each
    """How many columns are at least as similar, and more similar, than each threshold.

    ``advance`` is called by this thread now and then with the number of pairs done since.
    """
    rows, columns = rows.contiguous(), columns.contiguous()
    thresholds, offsets = thresholds.contiguous(), offsets.contiguous()
    at_least, above = (
        torch.empty(len(thresholds), dtype=torch.int64, device="cpu") for _ in range(2)
    )
    loaded().count_above(
        (rows.data_ptr(), columns.data_ptr(), rows.shape[1]),
        (
            len(rows),
            len(columns),
            thresholds.data_ptr(),
            offsets.data_ptr(),
            at_least.data_ptr(),
            above.data_ptr(),
        ),
        torch.get_num_threads(),
        advance,
    )
    return at_least, above
