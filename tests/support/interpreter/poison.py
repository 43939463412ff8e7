"""Memory that nobody has written yet, filled with what no kernel would write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

# In every 16 bits: NaN in each floating dtype, and as an integer of 32 or 64 bits beyond any index.
POISON = 0x7FFE
ZERO = 0

_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)
_empty = torch.empty


@contextlib.contextmanager
def empties_filled_with(pattern: int) -> Iterator[None]:
    """Have torch's functions that leave memory as they find it fill it with 16 bits, repeated."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _ALLOCATORS:
            patch.setattr(owner, name, _filling(getattr(owner, name), pattern))
        yield


def is_poison(values: np.ndarray) -> np.ndarray:
    """Which of the values are those that memory was filled with."""
    size = values.dtype.itemsize
    if size == 1:  # too few bits to tell
        return np.zeros(values.shape, bool)
    bits = np.ascontiguousarray(values).view(f"u{size}").reshape(values.shape)
    return bits == int.from_bytes(POISON.to_bytes(2, "little") * (size // 2), "little")


def _filling(allocate: Callable[..., Tensor], pattern: int) -> Callable[..., Tensor]:
    unit = np.frombuffer(pattern.to_bytes(2, "little"), np.uint8)

    def allocate_and_fill(*args: Any, **options: Any) -> Tensor:
        tensor = allocate(*args, **options)
        if type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.numel() > 0:
            memory = _empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
            memory[:] = np.resize(unit, len(memory))
        return tensor

    return allocate_and_fill
