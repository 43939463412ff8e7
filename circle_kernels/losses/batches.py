"""What to ask of a batch when the loss is 0 or NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels.arguments import (
    beside,
    check_embeddings,
    check_kinds,
    check_labels,
    check_numbers,
    label_numbers,
)
from circle_kernels.backends.addressable import materialized


def valid_rows(
    labels: Tensor,  # (N,)
    ref_labels: Tensor | None = None,  # (M,)
) -> Tensor:  # (N,) bool
    """Which rows have at least one positive and at least one negative.

    Other rows have loss 0 and gradient 0, and with ``scope="batch"`` the loss is 0 where no row has
    a positive or none a negative. Without ``ref_labels`` the batch is compared with itself, and a
    row is not compared with itself. Memory grows with N + M; nothing waits for a device.

    Args:
        labels: (N,) integers of any dtype, any values.
        ref_labels: (M,) integers, those of the references.

    Raises:
        TypeError, ValueError: labels of another type or shape; the message names them.

    Example:
        >>> valid_rows(torch.tensor([0, 0, 1]))
        tensor([ True,  True, False])
    """
    check_kinds(labels=labels, ref_labels=ref_labels)
    _check_vector("labels", labels)
    if ref_labels is None:
        (numbers,) = label_numbers(materialized(labels))
        references, itself = numbers, 1
    else:
        _check_vector("ref_labels", ref_labels)
        ref_labels = beside("ref_labels", materialized(ref_labels), labels)
        numbers, references = label_numbers(materialized(labels), ref_labels)
        itself = 0
    ordered = references.sort().values
    # (N,): how many references have the row's label
    same = torch.searchsorted(ordered, numbers, right=True) - torch.searchsorted(ordered, numbers)
    return (same > itself) & (same < len(references))


def nonfinite_rows(embeddings: Tensor) -> Tensor:  # (K,) int64
    """Which rows hold NaN or infinity, in ascending order.

    Such a row makes the loss of every row that is compared with it NaN. For debugging: on a device
    the host waits for the answer.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64.

    Raises:
        TypeError, ValueError: embeddings of another type or shape.

    Example:
        >>> nonfinite_rows(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
        tensor([1])
    """
    check_kinds(embeddings=embeddings)
    check_embeddings("embeddings", embeddings)
    check_numbers("embeddings", embeddings)
    smallest, largest = embeddings.detach().aminmax(dim=1)  # NaN where one is
    return (~(smallest.isfinite() & largest.isfinite())).nonzero().squeeze(1)


def _check_vector(name: str, labels: Tensor) -> None:
    rows = labels.shape[0] if isinstance(labels, Tensor) and labels.dim() > 0 else 0
    check_labels(name, labels, rows, of=name)
