"""What class losses are given beside their own numbers: as types, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from circle_kernels.arguments import (
    beside,
    check_embeddings,
    check_kinds,
    check_labels,
    check_not_swapped,
    check_references,
)
from circle_kernels.backends.addressable import all_addressable, materialized
from circle_kernels.classes.labels import resolve_labels
from circle_kernels.distributed.groups import Group
from circle_kernels.options import (
    REDUCTIONS,
    BackendName,
    GradReduction,
    Reduction,
    check_choice,
    check_integer,
)

IGNORE_INDEX = -100  # as torch.nn.functional.cross_entropy


class RowOptions(TypedDict, total=False):
    """What all losses of classes take beside their own numbers; see
    :func:`circle_kernels.class_circle_loss`.
    """

    reduction: Reduction
    ignore_index: int
    skip_below: float
    sample_rate: float
    sample_correction: bool
    sparse_grad: bool
    backend: BackendName


class PlacedOptions(RowOptions, total=False):
    """The same of a module, and where its weight is."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class HeadOptions(PlacedOptions, total=False):
    """The same of a module that need not compare by cosine."""

    normalize: bool


class UnifiedOptions(HeadOptions, total=False):
    """The same of :class:`circle_kernels.ClassUnifiedLoss`."""

    label_smoothing: float


class ShardOptions(HeadOptions, total=False):
    """The same of a module whose weight is spread over processes."""

    group: Group
    grad_reduction: GradReduction


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
