"""A random part of the classes: all that the batch has, and some of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.addressable import host_may_look, under_transforms
from circle_kernels.classes.arguments import NO_CLASS
from circle_kernels.operation.registered import is_batch_of_gradients
from circle_kernels.options import check_flag, check_sample_rate


@dataclass(frozen=True)
class Sampling:
    """Which classes take part; arguments as for :func:`circle_kernels.class_circle_loss`.

    Raises:
        TypeError, ValueError: one of the wrong type or range.
    """

    rate: float
    correction: bool
    sparse_grad: bool
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        # NumPy's, too, become Python's.
        object.__setattr__(self, "rate", check_sample_rate(self.rate))
        object.__setattr__(self, "correction", check_flag("sample_correction", self.correction))
        object.__setattr__(self, "sparse_grad", check_flag("sparse_grad", self.sparse_grad))

    @property
    def takes_rows(self) -> bool:
        """Whether rows of the weight are taken out of it."""
        return self.rate < 1 or self.sparse_grad


def sample_size(num_rows: int, num_classes: int, sample_rate: float) -> int:
    """Classes to take. There is room for the classes of all rows, so that no one has to count
    them, which on a device would make the host wait.
    """
    return min(num_classes, max(math.ceil(sample_rate * num_classes), num_rows))


def sample_classes(
    labels: Tensor,  # (N,) int64, in [0, num_classes) or NO_CLASS
    num_classes: int,
    size: int,
    generator: torch.Generator | None = None,
) -> Tensor:  # (size,) int64, ascending
    """The classes of the batch and as many others, drawn without replacement, as make ``size``."""
    scores = labels.new_empty(num_classes + 1, dtype=torch.float32).uniform_(generator=generator)
    # Rows without a class write to the last place, which is then left out.
    places = labels.masked_fill(labels == NO_CLASS, num_classes)
    scores = scores.index_fill(0, places, 2.0)[:num_classes]
    chosen = scores.topk(size, sorted=False).indices
    if host_may_look(chosen):  # in the CPU's memory sorting takes far longer than this
        is_chosen = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, chosen, True)
        return is_chosen.nonzero().squeeze(1)
    return chosen.sort().values


def positions_among(
    labels: Tensor,  # (N,) int64
    sampled: Tensor,  # (K,) ascending
) -> Tensor:  # (N,) int64
    """Where each label stands among the sampled classes; NO_CLASS stays what it is."""
    return torch.searchsorted(sampled, labels).masked_fill(labels == NO_CLASS, NO_CLASS)


def gather_rows(weight: Tensor, rows: Tensor, *, sparse_grad: bool) -> Tensor:  # (K, D)
    """The given rows of ``weight``, ascending and different, with a sparse gradient or a dense one.

    ``torch.nn.functional.embedding`` has such gradients, too, but does not know that rows are
    different: its dense one is slow and optimizers have to sort its sparse one. Under
    ``torch.func`` gradients are dense.
    """
    if under_transforms():
        return weight.index_select(0, rows)
    return _GatherRows.apply(weight, rows, sparse_grad)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, sparse_grad: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.sparse_grad = weight.shape, sparse_grad
        return weight.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        if is_batch_of_gradients(gradient):  # which cannot be sparse
            return gradient.new_zeros(ctx.shape).index_copy(0, rows, gradient), None, None
        if ctx.sparse_grad:
            sparse = torch.sparse_coo_tensor(
                rows[None], gradient, ctx.shape, check_invariants=False, is_coalesced=True
            )
            return sparse, None, None
        return gradient.new_zeros(ctx.shape).index_copy_(0, rows, gradient), None, None
