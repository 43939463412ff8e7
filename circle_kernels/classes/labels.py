"""Class labels: which are in range, which are to be ignored, and what becomes of the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circle_kernels.arguments import label_numbers
from circle_kernels.backends.addressable import host_may_look

NO_CLASS = -1  # the label of a row that has no positive


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
