"""The gate in front of raw memory: which tensors a kernel may read at their addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

PLAIN_TYPES = (Tensor, Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, and nobody who watches what is done to them."""
    return obstacle(tensor) is None and not is_in_torch_dispatch_mode()


def obstacle(tensor: Tensor) -> str | None:
    """Why a kernel may not read a tensor by its address, shape and strides; None where it may.

    Fake, meta and functional tensors and wrappers have no memory; others have one that holds
    something else than their strides say.
    """
    if type(tensor) not in PLAIN_TYPES:
        return f"it is a {type(tensor).__name__}, whose numbers are not in memory of its own"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "it belongs to a torch.func transform"
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "its numbers are not laid out by strides"
    if tensor.is_neg() or tensor.is_conj():
        return "it is a view whose numbers are negated or conjugated when they are read"
    if tensor.numel() > 0 and tensor.data_ptr() == 0:  # also a zero tensor, which claims a storage
        return "it has no memory"
    return None


def lacks_memory(tensor: Tensor) -> bool:
    """Whether the memory of an ordinary tensor is gone, or less than its shape takes: its storage
    was resized, as FSDP does between the steps. Nothing can read it, torch's own operations least.
    """
    return (
        obstacle(tensor) in (None, "it has no memory")
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.numel() > 0
        and not (tensor._is_zerotensor() or torch._is_functional_tensor(tensor))
        and tensor.untyped_storage().nbytes() < _bytes_reached(tensor)
    )


def _bytes_reached(tensor: Tensor) -> int:
    """How far into its storage a tensor with entries reaches."""
    entries = int(tensor.numel())
    if not tensor.is_contiguous():
        entries = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    return (int(tensor.storage_offset()) + entries) * tensor.itemsize


def materialized(tensor: Tensor) -> Tensor:
    """The same numbers as ordinary tensors have them, differentiably: dense, no view that is
    negated when it is read, no zeros without memory, no subclass that only adds methods."""
    if type(tensor) not in PLAIN_TYPES and _is_harmless(type(tensor)):
        tensor = tensor.as_subclass(Tensor)
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def _is_harmless(tensor_type: Any) -> bool:
    """Whether a subclass leaves to torch what becomes of its numbers."""
    return tensor_type.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
