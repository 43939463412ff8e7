"""What class losses are given, checked: rows, weights, and labels that may be out of range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from circle_kernels.arguments import (
    beside,
    check_embeddings,
    check_kinds,
    check_labels,
    check_not_swapped,
    check_references,
    label_numbers,
)
from circle_kernels.backends.addressable import all_addressable, host_may_look, materialized
from circle_kernels.options import (
    REDUCTIONS,
    Reduction,
    check_choice,
    check_integer,
)

IGNORE_INDEX = -100  # as torch.nn.functional.cross_entropy
NO_CLASS = -1  # the label of a row that has no positive


@dataclass(frozen=True)
class ClassRows:
    """What becomes of the rows' losses; arguments as for :func:`class_unified_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range.
    """

    reduction: Reduction
    ignore_index: int
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, REDUCTIONS)
        object.__setattr__(self, "ignore_index", check_integer("ignore_index", self.ignore_index))


def checked_sides(
    embeddings: Tensor, labels: Tensor | None, weight: Tensor, *, name: str = "weight"
) -> tuple[Tensor, Tensor]:
    """Both matrices of a class loss as kernels take them; ``name`` is what users call the second.

    Raises:
        TypeError, ValueError: one of the wrong type, shape, dtype or device; or labels are swapped
            with one of them.
    """
    readable = torch.compiler.is_compiling() or all_addressable(embeddings, labels, weight)
    if not readable:
        check_kinds(embeddings=embeddings, labels=labels, **{name: weight})
    check_not_swapped("embeddings", embeddings, "labels", labels)
    check_not_swapped(name, weight, "labels", labels)
    check_embeddings("embeddings", embeddings)
    check_embeddings(name, weight)
    if embeddings.shape[1] != weight.shape[1]:
        swapped = embeddings.shape[1] == weight.shape[0]
        raise ValueError(
            f"{name} must have as many columns as embeddings (a module's embedding_dim): "
            f"wanted {embeddings.shape[1]}, got {weight.shape[1]}"
            f"{'; are num_classes and embedding_dim swapped?' if swapped else ''}"
        )
    check_references(name, weight, embeddings)
    if readable:
        return embeddings, weight
    return materialized(embeddings), materialized(weight)


def checked_labels(
    labels: Tensor,
    embeddings: Tensor,
    num_classes: int,
    ignore_index: int | None,
    ignore_name: str = "ignore_index",
) -> tuple[Tensor, Tensor | None]:
    """:func:`resolve_labels` of labels that nobody has checked, on the device of the embeddings."""
    check_labels("labels", labels, embeddings.shape[0], of="embeddings")
    if not torch.compiler.is_compiling():
        labels = materialized(labels)
    labels = beside("labels", labels, embeddings)
    return resolve_labels(labels, num_classes, ignore_index, ignore_name)


def resolve_labels(
    labels: Tensor,  # (N,) integers of any dtype
    num_classes: int,
    ignore_index: int | None,  # None for none
    ignore_name: str = "ignore_index",  # what users call it
) -> tuple[Tensor, Tensor | None]:  # (N,) in [0, num_classes) or NO_CLASS, (N,)
    """Labels as int64 without those to ignore, and what to multiply losses with: None, or NaN where
    a label is out of range.

    The host must not wait for a device, nor for what is only traced, so a wrong label cannot raise
    there.

    Raises:
        ValueError: a label on the CPU that is neither in range nor ``ignore_index``.
    """
    (numbers,) = label_numbers(labels)
    if ignore_index is None:
        ignored = torch.zeros_like(numbers, dtype=torch.bool)
    else:
        ignored = numbers == ignore_index
    if labels.dtype == torch.uint64:
        ignored &= numbers >= 0  # others are too large for int64
    wrong = ((numbers < 0) | (numbers >= num_classes)) & ~ignored
    if host_may_look(labels):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            ignoring = "" if ignore_index is None else f" or {ignore_name}={ignore_index}"
            raise ValueError(
                f"labels must be in [0, {num_classes}){ignoring}, "
                f"got {labels[row].item()} in row {row}"
            )
        return numbers.masked_fill(ignored, NO_CLASS), None
    factors = torch.ones_like(numbers, dtype=torch.float32).masked_fill(wrong, math.nan)
    return numbers.masked_fill(ignored | wrong, NO_CLASS), factors
