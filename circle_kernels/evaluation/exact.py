"""Similarities without rounding errors that could depend on who computes them.

Coordinates are multiples of a small power of two and split into a high and a low part so that sums
of products of parts fit float64: they come out the same in any order, on any device, with or
without fused operations. One rounding remains, that of the sum of both sums. So ranks are the same
integers whatever counts them, and equal rows tie.

The grid is ``2^-g`` with ``g = 52 - ceil(log2(D) / 2)``: high parts are multiples of ``2^-26``, low
ones are at most ``2^-27``, and sums of their products at most ``sqrt(D) 2^-26``, a multiple of
``2^-(26 + g)``. Products of two low parts are left out: at most ``D 2^-54``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circle_kernels.backends.rows import NORM_EPS

# Added and taken away again it leaves multiples of 2^-26: those are float64's steps at its size.
_TO_HIGH = 1.5 * 2.0**26
_ENTRIES_AT_ONCE = 2**20


def grid_bits(depth: int) -> int:
    """The g of the grid ``2^-g`` for rows of so many coordinates."""
    return 52 - math.ceil(math.log2(max(depth, 1)) / 2)


def on_grid(
    embeddings: Tensor,  # (N, D), finite
    normalize: bool,
    *,
    alike: bool,
) -> Tensor:  # (N, D) float64, norms of at most 1 but for rounding
    """Rows over their norms, or over powers of two, rounded to the grid.

    ``alike`` takes one power of two for all rows, as those of the side have to have that are ranked
    against one another.
    """
    rows = embeddings.double()
    step = 2.0 ** grid_bits(rows.shape[1])
    # First by the largest coordinate, so that squares neither overflow nor vanish.
    _, first = torch.frexp(rows.abs().amax(1))
    norms = torch.linalg.vector_norm(_times_power(rows, -first), dim=1)
    exponents = first + torch.frexp(norms)[1]
    if alike and not normalize and norms.any():
        exponents = exponents[norms > 0].amax().expand_as(exponents)
    rows = _times_power(rows, -exponents).mul_(step).round_().div_(step)
    if normalize:
        high, low = _parts(rows)
        # The same for the same coordinates in another order.
        low_squares = 2 * (high * low).sum(1) + (low * low).sum(1)
        norms = ((high * high).sum(1) + low_squares).sqrt()
        norms = torch.maximum(norms, _times_power(torch.full_like(norms, NORM_EPS), -exponents))
        rows = (rows / norms[:, None]).mul_(step).round_().div_(step)
    return rows


def exact_similarities(
    rows: Tensor,  # (R, D) of on_grid
    columns: Tensor,  # (M, D) of on_grid
    row_indices: Tensor,  # (P,) int64
    column_indices: Tensor,  # (P,) int64
) -> Tensor:  # (P,) float64
    """Similarities of single pairs."""
    size = max(1, _ENTRIES_AT_ONCE // max(rows.shape[1], 1))
    found = [rows.new_empty(0)]
    for chosen in zip(row_indices.split(size), column_indices.split(size), strict=True):
        (high, low), (high_too, low_too) = _parts(rows[chosen[0]]), _parts(columns[chosen[1]])
        found.append((high * high_too).sum(1) + (high * low_too + low * high_too).sum(1))
    return torch.cat(found)


def exact_tile(
    rows: Tensor,  # (R, D) of on_grid
    columns: Tensor,  # (C, D) of on_grid
) -> Tensor:  # (R, C) float64
    """The same similarities of all pairs, by products of matrices."""
    (high, low), (high_too, low_too) = _parts(rows), _parts(columns)
    return high @ high_too.T + (high @ low_too.T + low @ high_too.T)


def _parts(rows: Tensor) -> tuple[Tensor, Tensor]:
    high = (rows + _TO_HIGH) - _TO_HIGH
    return high, rows - high


def _times_power(values: Tensor, exponents: Tensor) -> Tensor:
    """Values times powers of two, one for each row, which may be beyond float64's range."""
    half = exponents.div(2, rounding_mode="floor")
    for part in (half, exponents - half):
        factors = torch.ldexp(torch.ones_like(part, dtype=torch.float64), part)
        values = values * factors.reshape(-1, *[1] * (values.dim() - 1))
    return values
