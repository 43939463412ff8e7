"""What class losses take by name beside their own numbers, for type checkers.

Not imported with the package: that these are made takes as long as three modules.
"""

from __future__ import annotations

from typing import TypedDict

import torch

from circle_kernels.distributed.groups import Group
from circle_kernels.options import BackendName, GradReduction, Reduction


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
