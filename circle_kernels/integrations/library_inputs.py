"""What callers of pytorch-metric-learning give, looked at before anything is computed with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.addressable import (
    all_addressable,
    is_watched,
    materialized,
    obstacle,
)

_RESULT_DTYPES = (torch.float32, torch.float64)
_INDEX_DTYPES = (torch.int32, torch.int64)


def is_plain_batch(embeddings: Tensor, labels: Tensor) -> bool:
    """Whether there is nothing to check or to convert, and losses have the embeddings' dtype.

    On the CPU only: whether a loss is NaN is then seen without waiting.
    """
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing() or is_watched())
        and all_addressable(embeddings, labels)
        and embeddings.device.type == labels.device.type == "cpu"
        and embeddings.dtype in _RESULT_DTYPES
        and embeddings.dim() == 2
        and labels.dtype == torch.int64
        and labels.shape == embeddings.shape[:1]
        and embeddings.shape[0] > 1  # the library has a rule for lists of at most one pair
        and embeddings.shape[1] > 0
    )


def readable_indices(indices_tuple: tuple[Any, ...]) -> tuple[Any, ...]:
    """A miner's tuple as it can be looked into, which torch's own indexing may die of.

    Raises:
        TypeError: one of its tensors has no numbers of its own.
    """
    readable = tuple(
        materialized(each) if isinstance(each, Tensor) else each for each in indices_tuple
    )
    for place, each in enumerate(readable):
        if isinstance(each, Tensor) and not all_addressable(each):
            raise TypeError(
                f"indices_tuple[{place}] must be an ordinary tensor of indices, got a "
                f"{type(each).__name__}: {obstacle(each) or 'its storage was freed or resized'}"
            )
    return readable


def are_indices(
    rows_pos: Tensor, columns_pos: Tensor, rows_neg: Tensor, columns_neg: Tensor
) -> bool:
    """Whether these are two lists of pairs and not, say, masks or what is to be broadcast."""
    listed = (rows_pos, columns_pos, rows_neg, columns_neg)
    return (
        all(each.dim() == 1 and each.dtype in _INDEX_DTYPES for each in listed)
        and len(rows_pos) == len(columns_pos)
        and len(rows_neg) == len(columns_neg)
    )
