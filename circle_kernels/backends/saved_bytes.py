"""Tensors that are kept from one pass to the other so that hooks on saved tensors do no harm."""

from __future__ import annotations

import torch
from torch import Tensor

from circle_kernels.backends.problem import LISTED_MULTIPLE

HOOKS = "hooks on saved tensors have to give back what they were given"


def as_bytes(vector: Tensor) -> Tensor:
    """A vector as hooks on saved tensors leave it alone: those that compress floats would round a
    log-sum-exp by far more than an exponent of the weights that are taken relative to it may be."""
    return vector.view(torch.uint8)


def from_bytes(saved: Tensor, dtype: torch.dtype) -> Tensor:
    """The vector again.

    Raises:
        RuntimeError: something else came back.
    """
    if saved.dtype != torch.uint8 or saved.numel() % dtype.itemsize:
        raise RuntimeError(
            f"circle_kernels: the backward pass wants a log-sum-exp's bytes, got {saved.dtype} of "
            f"shape {tuple(saved.shape)}; {HOOKS}"
        )
    if saved.numel() == 0:
        return saved.new_empty(saved.shape, dtype=dtype)
    if saved.storage_offset() % dtype.itemsize or not saved.is_contiguous():
        saved = saved.clone(memory_format=torch.contiguous_format)
    return saved.view(dtype)


def padded_sides(rows: int, columns: int) -> list[int]:
    """Both sides of the memory of :attr:`PairProblem.listed`."""
    return [-(-size // LISTED_MULTIPLE) * LISTED_MULTIPLE for size in (rows, columns)]


def with_padding(
    listed: Tensor,  # (N, M) uint8
) -> Tensor:  # (N, M) uint8, the beginning of a padded matrix
    """:attr:`PairProblem.listed` as it is or, where its padding is lost, as a copy: what hooks on
    saved tensors give back are the entries."""
    rows, columns = listed.shape
    sides = padded_sides(rows, columns)
    reach = listed.storage_offset() + (sides[0] - 1) * listed.stride(0) + sides[1]
    if (
        listed.stride(1) == 1
        and listed.stride(0) >= sides[1]
        and reach <= listed.untyped_storage().nbytes()
    ):
        return listed
    padded = listed.new_zeros(sides)[:rows, :columns]
    return padded.copy_(listed)
