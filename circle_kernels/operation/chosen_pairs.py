"""Batches where not labels alone say which pairs count: ignored labels, masks and own copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.arguments import (
    INTEGER_DTYPES,
    beside,
    check_embeddings,
    check_kinds,
    check_numbers,
    check_references,
    describe,
)
from circle_kernels.backends.addressable import host_may_look, materialized
from circle_kernels.operation.batch import Batch, check_batch
from circle_kernels.operation.pair_masks import masked_batch
from circle_kernels.options import check_integer

# Embeddings, labels, references and their labels, as users give them.
Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
OF_PAIRS = ("ignore_label", "pair_mask", "self_index")


def chosen_batch(
    call: str, tensors: Tensors, options: dict[str, Any]
) -> tuple[Batch, Tensor | None]:
    """The batch without what is ignored, and which rows were kept, where that are not all.

    Args:
        call: the function that users call, for messages.
        tensors: embeddings, labels, references and their labels, as they gave them.
        options: ``ignore_label``, ``pair_mask``, ``self_index`` and ``group`` among others.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range, or two
            that exclude each other.
    """
    embeddings, labels, ref_emb, ref_labels = tensors
    ignore_label, mask, self_index = (options.get(name) for name in OF_PAIRS)
    if options.get("group") is not None:
        for name in ("pair_mask", "self_index"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{call} takes {name} of the rows and references of one process, and not with "
                    "group, where those of other processes count as well"
                )
    if self_index is not None:
        self_index = _checked_self_index(self_index, embeddings, ref_emb)
    if mask is not None:
        if labels is not None or ref_labels is not None or ignore_label is not None:
            raise ValueError(
                f"{call} takes pair_mask in place of labels: give labels=None, and neither "
                "ref_labels nor ignore_label"
            )
        return masked_batch(embeddings, ref_emb, mask, self_index), None
    if labels is None:
        raise TypeError(f"{call} wants labels, or pair_mask in their place; got None for both")
    batch = check_batch(embeddings, labels, ref_emb, ref_labels)._replace(own_columns=self_index)
    if ignore_label is None:
        return batch, None
    return _without_ignored(batch, check_integer("ignore_label", ignore_label))


def _checked_self_index(index: Tensor, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
    check_kinds(self_index=index, embeddings=embeddings, ref_emb=ref_emb)
    check_embeddings("embeddings", embeddings)
    wanted = (
        "self_index must be integers of shape (rows,): of each row the place of its own copy "
        "among the references, or -1"
    )
    if not isinstance(index, Tensor) or index.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{wanted}; got {describe(index)}")
    if ref_emb is None:
        raise ValueError("self_index needs ref_emb, among which own copies are; got None")
    check_references("ref_emb", ref_emb, embeddings)
    if index.shape != embeddings.shape[:1]:
        raise ValueError(f"{wanted}; wanted {tuple(embeddings.shape[:1])}, got {describe(index)}")
    index = beside("self_index", materialized(index), embeddings).to(torch.int64)
    if host_may_look(index):
        wrong = (index < -1) | (index >= len(ref_emb))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{wanted}; there are {len(ref_emb)} references, got {index[row].item()} in row "
                f"{row}"
            )
    return index


def _without_ignored(batch: Batch, ignored: int) -> tuple[Batch, Tensor | None]:
    """On a device the host waits to know how many rows are left."""
    embeddings, labels, ref_emb, ref_labels = batch[:4]
    check_numbers("labels", labels)
    kept = (labels != ignored).nonzero().squeeze(1)
    own = None if batch.own_columns is None else batch.own_columns[kept]
    batch = batch._replace(embeddings=embeddings[kept], labels=labels[kept], own_columns=own)
    if ref_emb is not None and ref_labels is not None:
        present = ref_labels != ignored
        references = present.nonzero().squeeze(1)
        if own is not None:
            places = torch.where(present, present.cumsum(0) - 1, -1)
            own = F.pad(places, (0, 1), value=-1)[own]  # of -1 the last one
        batch = batch._replace(
            ref_emb=ref_emb[references], ref_labels=ref_labels[references], own_columns=own
        )
    return batch, kept
