"""Kinds of tensors that Python can construct, and the numbers that each stands for."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


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


class Plain(Tensor):
    """A subclass that changes nothing."""


class Opaque(Wrapper):
    """Implements nothing but what makes a leaf of it."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].wrapped)
        raise NotImplementedError(f"Opaque does not implement {func}")


@functools.cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()


@functools.cache
def _mesh() -> Any:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.device_mesh.init_device_mesh("cpu", (1,))


def _distributed(value: Tensor, sharded: bool) -> Tensor:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    return distribute_tensor(value, _mesh(), [Shard(0) if sharded else Replicate()])


def _bytes(value: Tensor) -> bytearray:
    return bytearray(value.reshape(-1).contiguous().view(torch.uint8).tolist())


def _mapped(value: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile() as file:
        file.write(_bytes(value))
        file.flush()
        flat = torch.from_file(file.name, size=value.numel(), dtype=value.dtype)
    return flat.view(value.shape)


def _loaded_mapped(value: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(value, file.name)
        return torch.load(file.name, mmap=True)


def _misaligned(value: Tensor) -> Tensor:
    """At an address that its dtype does not divide."""
    data = bytearray(1) + _bytes(value)
    return torch.frombuffer(data, dtype=value.dtype, offset=1).view(value.shape)


def _freed(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def _in_inference_mode(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _leaked(value: Tensor, transform: Callable[..., Any]) -> Tensor:
    """What a function under a transform of torch.func kept, which is over now."""
    kept = []

    def function(inside: Tensor) -> Tensor:
        kept.append(inside)
        return inside.sum()

    transform(function)(value)
    return kept[0]


def _interleaved(value: Tensor) -> Tensor:
    """Every other number in memory, in the other order of dimensions."""
    spread = value.new_full([2 * size for size in value.T.shape], 77)
    spread[(slice(None, None, 2),) * value.dim()] = value.T
    return spread[(slice(None, None, 2),) * value.dim()].T


def same(value: Tensor) -> Tensor | None:
    return value


def _none(value: Tensor) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Kind:
    """A kind of tensor.

    Args:
        make: a tensor of this kind from a plain one; raises where torch has none.
        numbers: what that tensor stands for; None where it stands for no numbers, so that there
            can be no result.
        shapes_only: no numbers, but results have shapes.
        within: the context of the call.
        names: what an error says; by default the argument.
        own_refusal: an error may be the tensor's own, which knows no arguments.
        leaf: it can be what gradients are asked for.
        works: there are no errors; in code that is not ours only a plain tensor works.
        torch_dies: ordinary operations of torch end the process, so that only what our code sees
            first is tried.
    """

    make: Callable[[Tensor], Tensor]
    numbers: Callable[[Tensor], Tensor | None] = same
    shapes_only: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    names: str = ""
    own_refusal: bool = False
    leaf: bool = True
    works: bool = False
    torch_dies: bool = False


def _cast(dtype: torch.dtype) -> Kind:
    return Kind(
        lambda value: value.to(dtype),
        lambda value: value.to(dtype).to(value.dtype),
        names="must be",
    )


def _reshaped(change: Callable[[Tensor], Tensor]) -> Kind:
    return Kind(change, change, names="must have|must be in")


KINDS = {
    "plain": Kind(same, works=True),
    "fake": Kind(lambda value: _fake_mode().from_tensor(value), _none, shapes_only=True),
    "fake under its mode": Kind(
        lambda value: _fake_mode().from_tensor(value),
        _none,
        shapes_only=True,
        within=_fake_mode,
        own_refusal=True,
    ),
    "meta": Kind(lambda value: value.to("meta"), _none, shapes_only=True),
    "replicated": Kind(lambda value: _distributed(value, sharded=False)),
    "sharded": Kind(lambda value: _distributed(value, sharded=True)),
    "unwrapping": Kind(Wrapper),
    "opaque": Kind(Opaque, own_refusal=True),
    "subclass": Kind(lambda value: value.as_subclass(Plain), works=True),
    "masked": Kind(
        lambda value: torch.masked.masked_tensor(value, torch.ones_like(value, dtype=torch.bool)),
        own_refusal=True,
    ),
    "parameter": Kind(
        lambda value: nn.Parameter(value, requires_grad=value.is_floating_point()), works=True
    ),
    "buffer": Kind(nn.Buffer, works=True),
    "uninitialized": Kind(
        lambda value: nn.UninitializedParameter(dtype=value.dtype), _none, own_refusal=True
    ),
    "zero": Kind(
        lambda value: torch._efficientzerotensor(value.shape, dtype=value.dtype), torch.zeros_like
    ),
    "negated": Kind(lambda value: torch._neg_view(-value)),
    "imaginary part": Kind(
        lambda value: torch.complex(torch.zeros_like(value), -value).conj().imag
    ),
    "real part": Kind(lambda value: torch.complex(value, value).conj().real, works=True),
    "conjugated": Kind(lambda value: value.to(torch.complex64).conj()),
    "coo": Kind(Tensor.to_sparse),
    "csr": Kind(Tensor.to_sparse_csr),
    "mkldnn": Kind(Tensor.to_mkldnn),
    "quantised": Kind(
        lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint32),
        lambda value: (
            torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint32)
            .dequantize()
            .to(value.dtype)
        ),
    ),
    "nested": Kind(lambda value: torch.nested.nested_tensor(list(value))),
    "jagged": Kind(lambda value: torch.nested.nested_tensor(list(value), layout=torch.jagged)),
    "named": Kind(lambda value: value.rename(*"ab"[: value.dim()])),
    "expanded": _reshaped(lambda value: value[:1].expand(value.shape)),
    # More numbers than an address can count: only memory that it would take can be named.
    "wide": Kind(
        lambda value: value.new_zeros(1).expand(*value.shape[:-1], 2**58),
        _none,
        names="allocat|memory|must be",
    ),
    "long": Kind(
        lambda value: value.new_zeros(1).expand(2**58, *value.shape[1:]),
        _none,
        names="allocat|memory|must be",
    ),
    "interleaved": Kind(_interleaved, works=True),
    "misaligned": Kind(_misaligned, works=True),
    "mapped": Kind(_mapped, works=True),
    "loaded mapped": Kind(_loaded_mapped, works=True),
    "shared": Kind(lambda value: value.clone().share_memory_(), works=True),
    "freed": Kind(_freed, _none, torch_dies=True),
    "inference": Kind(_in_inference_mode, works=True),
    "functional": Kind(torch._to_functional_tensor, own_refusal=True),
    "leaked from grad": Kind(lambda value: _leaked(value, torch.func.grad), leaf=False),
    "leaked from vmap": Kind(
        lambda value: _leaked(value[None], torch.func.vmap), _none, own_refusal=True
    ),
    "with gradient": Kind(
        lambda value: value.to(torch.promote_types(value.dtype, torch.float16)).requires_grad_()
    ),
    "scalar": _reshaped(lambda value: value.flatten()[0]),
    "empty": _reshaped(lambda value: value[:0]),
    "shorter": _reshaped(lambda value: value[:-1]),
    "column": _reshaped(lambda value: value[..., None]),
    **{
        str(dtype).removeprefix("torch."): _cast(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.complex64,
            torch.bool,
            torch.uint64,
            torch.int32,
            torch.int8,
        )
    },
}
