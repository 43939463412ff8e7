"""Which classes embeddings are most similar to, without the (N, C) similarities in memory.

Blocks of rows meet one chunk of classes after another, and of each row only its best classes so far
are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from circle_kernels.backends.choice import without_autocast
from circle_kernels.backends.problem import result_dtype
from circle_kernels.backends.rows import unit_rows
from circle_kernels.options import check_integer
from circle_kernels.top_k import streamed_top

# Similarities in memory at a time, and of how many rows.
_ENTRIES_AT_ONCE = 2**21
_ROWS_AT_ONCE = 1024


class TopClasses(NamedTuple):
    """The most similar classes of each row, the most similar first.

    Attributes:
        similarities: (N, k), float32, or float64 for float64.
        classes: (N, k) int64.
    """

    similarities: Tensor
    classes: Tensor


def check_class_count(name: str, value: SupportsIndex, num_classes: int) -> int:
    """The value as an ``int`` from 1 to the number of classes.

    Raises:
        TypeError, ValueError: something else.
    """
    count = check_integer(name, value, smallest=1)
    if count > num_classes:
        raise ValueError(f"{name} must be at most the {num_classes} classes, got {count}")
    return count


@torch.no_grad()
def top_classes(
    embeddings: Tensor,  # (N, D)
    weight: Tensor,  # (C, D), checked as the embeddings are
    k: int,
    *,
    normalize: bool = True,
) -> TopClasses:
    """The k most similar of at least k classes, and how similar they are.

    Of classes that are equally similar the one with the lower number comes first. NaN counts as
    the largest, as for ``torch.topk``.
    """
    blocks = [_top_of_block(rows, weight, k, normalize) for rows in embeddings.split(_ROWS_AT_ONCE)]
    return TopClasses(*(torch.cat(each) for each in zip(*blocks, strict=True)))


@torch.no_grad()
def own_and_best_other(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,) int64; outside of [0, C) a row has no class
    weight: Tensor,  # (C, D)
    *,
    normalize: bool = True,
) -> Tensor:  # (N, 2)
    """Each row's similarity to its own class and to the most similar of all others.

    ``-inf`` where there is none.
    """
    parts = zip(embeddings.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([_own_and_other_of_block(*part, weight, normalize) for part in parts])


def count_hits(
    both: Tensor,  # (N, 2) of own_and_best_other
    labels: Tensor,  # (N,) int64, negative where a row has no class
) -> Tensor:  # (2,) int64
    """How many rows are most similar to their own class alone, and how many have one."""
    counted = labels >= 0
    hits = (both[:, 0] > both[:, 1]) & counted
    return torch.stack([hits.sum(), counted.sum()])


def _top_of_block(rows: Tensor, weight: Tensor, k: int, normalize: bool) -> TopClasses:
    nothing = rows.new_empty(len(rows), 0, dtype=_similarity_dtype(rows, weight))
    return TopClasses(*streamed_top(_chunks(rows, weight, normalize), nothing, k))


def _own_and_other_of_block(
    rows: Tensor, labels: Tensor, weight: Tensor, normalize: bool
) -> Tensor:
    own = rows.new_full((len(rows),), -math.inf, dtype=_similarity_dtype(rows, weight))
    other = own.clone()
    for first, similarities in _chunks(rows, weight, normalize):
        places = labels - first
        # Of one product, so that classes with the same weights are equally similar.
        here = ((places >= 0) & (places < similarities.shape[1])).nonzero().squeeze(1)
        own[here] = similarities[here, places[here]]
        similarities[here, places[here]] = -math.inf
        other = torch.maximum(other, similarities.amax(1))
    return torch.stack([own, other], dim=1)


def _chunks(rows: Tensor, weight: Tensor, normalize: bool) -> Iterator[tuple[int, Tensor]]:
    """The first class of each chunk, and the similarities (rows, chunk)."""
    if len(weight) == 0:
        return
    dtype = _similarity_dtype(rows, weight)
    size = max(1, _ENTRIES_AT_ONCE // max(len(rows), weight.shape[1]))
    unit = unit_rows(rows, normalize).rows.to(dtype)
    for index, part in enumerate(weight.split(size)):
        with without_autocast(rows.device.type):
            similarities = unit @ unit_rows(part, normalize).rows.to(dtype).T
        yield index * size, similarities


def _similarity_dtype(rows: Tensor, weight: Tensor) -> torch.dtype:
    return result_dtype(torch.promote_types(rows.dtype, weight.dtype))
