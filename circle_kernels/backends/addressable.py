"""The gate in front of raw memory: which tensors a kernel may read at their addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_PLAIN_TYPES = (Tensor, Parameter)
_MISALIGNED = "its address is not a multiple of its numbers' size"


_stand_ins = False


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Take fake tensors for what they stand for, and those who watch for nobody.

    To count what a step asks of host and device, without any of it being computed.
    """
    global _stand_ins
    before, _stand_ins = _stand_ins, True
    try:
        yield
    finally:
        _stand_ins = before


def is_watched() -> bool:
    """Whether somebody has to see what is done to tensors, as tracers do."""
    return is_in_torch_dispatch_mode() and not _stand_ins


def is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers behind a tensor, and nobody who watches what is done to them."""
    return all_addressable(tensor) and not is_watched()


def host_may_look(tensor: Tensor) -> bool:
    """Whether there are numbers to be had, without a device to wait for or a compiler to object."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return is_plain(tensor)


def obstacle(tensor: Tensor) -> str | None:
    """Why a kernel may not read a tensor by its address, shape and strides; None where it may.

    Fake, meta and functional tensors and wrappers have no memory; others have one that holds
    something else than their strides say.
    """
    if type(tensor) not in _PLAIN_TYPES:
        return f"it is a {type(tensor).__name__}, whose numbers are not in memory of its own"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or is_legacy_batch(tensor):
        return "it belongs to a transform such as torch.func.vmap"
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "its numbers are not laid out by strides"
    if tensor.is_neg() or tensor.is_conj():
        return "it is a view whose numbers are negated or conjugated when they are read"
    if tensor.is_meta or tensor._is_zerotensor() or torch._is_functional_tensor(tensor):
        return "it has no memory"
    if (tensor.is_cpu or tensor.is_cuda) and tensor.data_ptr() % tensor.itemsize:
        return _MISALIGNED
    return None


_LEGACY_BATCH = torch._C._dispatch_key_parse("Batched")


def is_legacy_batch(tensor: Tensor) -> bool:
    """Whether a tensor stands for several in a vmap that is not ``torch.func``'s: the one of
    ``is_grads_batched``."""
    return torch._C._dispatch_keys(tensor).has(_LEGACY_BATCH)


def all_addressable(*tensors: Any) -> bool:
    """Whether kernels may read all of these, None aside, and each has its memory.

    What :func:`obstacle` and :func:`lacks_memory` say, in a fraction of their time, since every
    step asks it: storages of kinds without memory have the address 0, or none to ask for.
    """
    if _stand_ins:
        return True
    try:
        for tensor in tensors:
            if tensor is None:
                continue
            if type(tensor) not in _PLAIN_TYPES or tensor.is_neg() or tensor.is_nested:
                return False
            storage = tensor.untyped_storage()
            held = storage.nbytes() - tensor.storage_offset() * tensor.itemsize
            if (
                storage.data_ptr() != 0
                and tensor.data_ptr() % tensor.itemsize == 0
                and held >= tensor.nbytes
                and tensor.is_contiguous()
            ):
                continue
            if obstacle(tensor) is not None or lacks_memory(tensor):
                return False
    except RuntimeError:
        return False
    return True


def lacks_memory(tensor: Tensor) -> bool:
    """Whether the memory of an ordinary tensor is gone, or less than its shape takes: its storage
    was resized, as FSDP does between the steps. Nothing can read it, torch's own operations least.
    """
    return (
        obstacle(tensor) is None
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.untyped_storage().nbytes() < _bytes_reached(tensor)
    )


def _bytes_reached(tensor: Tensor) -> int:
    """How far into its storage a tensor reaches."""
    entries = int(tensor.numel())
    if entries > 0 and not tensor.is_contiguous():
        entries = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    return (int(tensor.storage_offset()) + entries) * tensor.itemsize if entries > 0 else 0


def materialized(tensor: Tensor) -> Tensor:
    """The same numbers as ordinary tensors have them, differentiably: dense, aligned, no view that
    is negated when it is read, no zeros without memory, no subclass that only adds methods."""
    if torch.compiler.is_compiling() or obstacle(tensor) is None:
        return tensor
    if type(tensor) not in _PLAIN_TYPES and _is_harmless(type(tensor)):
        tensor = tensor.as_subclass(Tensor)
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    copied = tensor._is_zerotensor() or obstacle(tensor) == _MISALIGNED
    return tensor.clone() if copied else tensor


def _is_harmless(tensor_type: Any) -> bool:
    """Whether a subclass leaves to torch what becomes of its numbers."""
    return tensor_type.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def under_transforms() -> bool:
    """Whether ``torch.func`` is at work, whose tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()
