"""A tensor subclass without memory of its own, as third parties write them."""

from __future__ import annotations

import torch
from torch import Tensor


class Wrapper(Tensor):
    """Has no memory of its own; computes with the tensor that it wraps."""

    @staticmethod
    def __new__(cls, wrapped: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, wrapped.shape, dtype=wrapped.dtype)

    def __init__(self, wrapped: Tensor) -> None:
        self.wrapped = wrapped

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = torch.utils._pytree.tree_map_only(
            cls, lambda each: each.wrapped, (args, kwargs or {})
        )
        return func(*args, **kwargs)
