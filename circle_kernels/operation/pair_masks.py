"""Pairs that users choose themselves: by a matrix, dense or sparse, or in lists."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from circle_kernels.arguments import (
    check_embeddings,
    check_kinds,
    check_references,
    describe,
    one_dtype,
)
from circle_kernels.backends.addressable import materialized
from circle_kernels.backends.problem import ROW_NEGATIVE, ROW_POSITIVE
from circle_kernels.operation.batch import Batch
from circle_kernels.operation.listed_pairs import (
    PairIndices,
    both_ways,
    listed_batch,
    no_pairs,
    pair_matrix,
)

# (N, M): a boolean matrix, of which True is a positive pair and False a negative one; a sparse one,
# whose entries are the positive pairs; an int8 matrix, 1 for positive, -1 for negative and 0 for
# neither; or rows and columns of the positive pairs, then of the negative ones.
PairMask: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor, Tensor]

_WANTED = (
    "pair_mask must be a boolean, int8 or sparse matrix of shape (rows, references), or four "
    "vectors of indices: rows and columns of the positive pairs, then of the negative ones"
)


def masked_batch(
    embeddings: Tensor,  # (N, D)
    ref_emb: Tensor | None,  # (M, D)
    mask: PairMask,
    self_index: Tensor | None = None,  # (N,) checked
) -> Batch:
    """A batch with the pairs that a mask has, in memory of one byte for each pair.

    Without references the pair of an embedding with itself is left out.

    Raises:
        TypeError, ValueError: one of the wrong type, shape, dtype or device.
        IndexError: an index out of range.
    """
    check_kinds(embeddings=embeddings, ref_emb=ref_emb)
    check_embeddings("embeddings", embeddings)
    embeddings = materialized(embeddings)
    if ref_emb is not None:
        check_references("ref_emb", ref_emb, embeddings)
        embeddings, ref_emb = one_dtype(embeddings, materialized(ref_emb))
    columns = embeddings if ref_emb is None else ref_emb
    kinds = _kinds_of(mask, len(embeddings), len(columns), embeddings.device)
    if ref_emb is None:
        kinds.fill_diagonal_(0)
    if self_index is not None:
        places = torch.arange(len(columns), device=self_index.device)
        kinds.masked_fill_(self_index[:, None] == places, 0)
    if ref_emb is None:
        both = both_ways(kinds)
        if both is None:  # positive for one of its rows and negative for the other
            ref_emb = embeddings
        else:
            kinds = both
    return listed_batch(embeddings, ref_emb, kinds)


def _kinds_of(mask: PairMask, rows: int, columns: int, device: torch.device) -> Tensor:
    """What :func:`pair_matrix` would return, of any mask."""
    if isinstance(mask, (tuple, list)):
        return _listed(tuple(mask), rows, columns, device)
    if not isinstance(mask, Tensor):
        raise TypeError(f"{_WANTED}; got {describe(mask)}")
    if mask.shape != (rows, columns):
        raise ValueError(f"{_WANTED}; wanted {(rows, columns)}, got {describe(mask)}")
    if mask.device != device:
        raise ValueError(f"pair_mask must be on the device of embeddings, got {describe(mask)}")
    kinds = no_pairs(rows, columns, device)
    if mask.layout is not torch.strided:
        entries = mask.to_sparse_coo().coalesce()
        present = entries.values() != 0
        kinds.fill_(ROW_NEGATIVE)
        kinds[tuple(entries.indices()[:, present])] = ROW_POSITIVE
    elif mask.dtype == torch.bool:
        kinds.copy_(mask).neg_().add_(ROW_NEGATIVE)  # 1 where it is true, else 2
    elif mask.dtype == torch.int8:
        kinds.copy_((mask > 0) * ROW_POSITIVE + (mask < 0) * ROW_NEGATIVE)
    else:
        raise TypeError(f"{_WANTED}; got {describe(mask)}")
    return kinds


def _listed(lists: tuple[Tensor, ...], rows: int, columns: int, device: torch.device) -> Tensor:
    if len(lists) != 4 or not all(
        isinstance(each, Tensor) and each.dim() == 1 and each.dtype in (torch.int32, torch.int64)
        for each in lists
    ):
        raise TypeError(f"{_WANTED}; got {', '.join(map(describe, lists))}")
    indices = PairIndices(*(each.to(device, torch.int64) for each in lists))
    kinds = pair_matrix(indices, rows, columns)
    if (kinds == ROW_POSITIVE | ROW_NEGATIVE).any():
        raise ValueError("pair_mask must not have a pair both as positive and as negative")
    return kinds
