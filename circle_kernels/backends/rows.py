"""Rows over their norms, and the gradient's way back: what backends made of PyTorch share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.backends.problem import result_dtype

NORM_EPS = 1e-12  # as torch.nn.functional.normalize


@dataclass(frozen=True)
class UnitRows:
    """One side's rows over their divisors, ``max(|x|, eps)`` per row or 1, and the way back.

    A row that holds a NaN or an infinity is NaN, so that every similarity of it is NaN whatever the
    formula, and no loss that saw the row can come out finite.
    """

    rows: Tensor  # (N, D) in the result dtype
    divisors: Tensor  # (N,) of the rows as given times ``powers``
    powers: Tensor  # (N,) powers of two, 1 but for rows whose squares might overflow
    normalize: bool
    dtype: torch.dtype  # of the rows as given, and so of their gradient

    def input_gradient(
        self,
        gradient: Tensor,  # (N, D) with respect to ``rows``
    ) -> Tensor:  # (N, D) with respect to the rows as given, in their dtype
        """The gradient behind the division by the divisors."""
        # At or below eps the divisor is a constant: nothing to project out.
        at_zero = self.divisors <= NORM_EPS
        if self.normalize:
            along = (gradient * self.rows).sum(1).masked_fill(at_zero, 0)
            gradient = (gradient - self.rows * along[:, None]) / self.divisors[:, None]
            gradient *= self.powers[:, None]
        # Cast to a half type without making the huge gradient of a zero vector infinite.
        limit = torch.finfo(self.dtype).max
        return torch.where(at_zero[:, None], gradient.clamp(-limit, limit), gradient).to(self.dtype)


def unit_rows(
    embeddings: Tensor,  # (N, D)
    normalize: bool,
) -> UnitRows:
    """Divide rows by their norms, or leave them as they are."""
    dtype = result_dtype(embeddings.dtype)
    rows = embeddings.contiguous()
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1, dtype=dtype)
    # Entries below 2^48 in float32 have squares that add up; larger ones do so times 2^-80, and
    # their norm stays well above eps.
    octaves = math.frexp(torch.finfo(dtype).max)[1] // 2
    powers = torch.ones_like(largest)
    if normalize:
        powers.masked_fill_(largest >= 2.0 ** (octaves - 16), 2.0 ** -(octaves + 16))
    rows = rows * powers[:, None]
    divisors = torch.ones_like(largest)
    if normalize:
        divisors = torch.linalg.vector_norm(rows, dim=1).clamp_min(NORM_EPS)
    divisors.masked_fill_(~largest.isfinite(), math.nan)
    rows /= divisors[:, None]
    return UnitRows(rows, divisors, powers, normalize, embeddings.dtype)
