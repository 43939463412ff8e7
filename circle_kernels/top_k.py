"""The largest entries of each row of a matrix that comes in chunks of columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def streamed_top(
    chunks: Iterable[tuple[int, Tensor]],  # the first column of each, and its values (N, C)
    nothing: Tensor,  # (N, 0) of the values' dtype
    k: int,
) -> tuple[Tensor, Tensor]:
    """Up to k largest values of each row and their columns, the largest first.

    Of equal ones the lower column comes first. NaN counts as the largest, as for ``torch.topk``.
    """
    top = (nothing, torch.empty_like(nothing, dtype=torch.int64))
    for first, values in chunks:
        best, places = _first_of_largest(values, k)
        top = merged_top([top, (best, places + first)], k)
    return top


def merged_top(tops: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The k best among the best of several sets of columns, in the order of their numbers."""
    values, columns = (torch.cat(each, dim=1) for each in zip(*tops, strict=True))
    best, places = _first_of_largest(values, k)
    return best, columns.gather(1, places)


def _first_of_largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Up to k largest of each row, and their places; of equal ones the first.

    ``torch.topk`` takes any of equal ones.
    """
    k = min(k, values.shape[1])
    largest, places = values.topk(k, dim=1)
    least = largest[:, -1:]
    # More of them are as large as the last one than there was room for; or it is NaN.
    crowded = (values < least).sum(1) < values.shape[1] - k
    if crowded.any():
        places[crowded] = _ordered(values[crowded])[:, :k]
    places = places.sort(1).values
    largest = values.gather(1, places)
    order = _ordered(largest)
    return largest.gather(1, order), places.gather(1, order)


def _ordered(values: Tensor) -> Tensor:
    return values.sort(dim=1, descending=True, stable=True).indices
