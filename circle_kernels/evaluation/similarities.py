"""Tiles of similarities as fast as their dtype allows, with the same bits wherever they come from.

Float32 has room for the products of the high parts of :mod:`circle_kernels.evaluation.exact` alone:
multiples of ``2^-52`` that add up without rounding in float64, one product of matrices instead of
three. The result is about ``2^-26`` from the true similarity, before it is rounded to float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.evaluation.exact import exact_tile


@dataclass(frozen=True)
class Similarities:
    """How embeddings of one dtype are compared: rows of ``on_grid``, rounded once more or not."""

    dtype: torch.dtype  # of the result: float64 for float64, else float32
    rounded: bool  # to high parts

    @staticmethod
    def of(dtype: torch.dtype, *, unit: bool) -> Similarities:
        """For embeddings of a dtype; ``unit`` says that rows on the grid all have norms near 1."""
        if dtype == torch.float64:
            return Similarities(dtype, False)
        return Similarities(torch.float32, unit)

    def operand(self, rows: Tensor) -> Tensor:  # (N, D) of on_grid
        """Rows as :meth:`tile` takes them."""
        return (rows * 2.0**26).round_().mul_(2.0**-26) if self.rounded else rows

    def tile(self, rows: Tensor, columns: Tensor) -> Tensor:  # (R, C) float64
        """Of all pairs of some operands, to be rounded to the dtype; at most about 1."""
        return rows @ columns.T if self.rounded else exact_tile(rows, columns)
