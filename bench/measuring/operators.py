"""Operators below autograd: which of them launch work, and for which the host has to wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result, or whose result's shape, the host has to wait for.
_WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "unique",
    "is_nonzero",
    "equal",
    "bincount",
    "repeat_interleave.Tensor",
)
# Operators that compute nothing although their result shares no memory with their arguments.
# Numbers become tensors on the host where they can, so they are not counted either.
_ALLOCATING = ("empty", "new_empty", "scalar_tensor")


def waits(
    operator: str, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> bool:
    """Whether the host has to wait for a device before it can go on.

    Args:
        operator: its name with its overload, such as ``"aten.nonzero.default"``.
        arguments, options: what it was called with, if known.
    """
    if _named(operator, _WAITING):
        return True
    if _named(operator, ("index.", "index_put")):
        # How many entries a mask selects is not known to the host, which only need not know it
        # where all of them get the same number.
        masked = any(
            index.dtype in (torch.bool, torch.uint8) for index in tensors_in(arguments[1:2])
        )
        return masked and not (_named(operator, ("index_put",)) and arguments[2].numel() == 1)
    to = (options or {}).get("device")
    return (
        _named(operator, ("_to_copy",))
        and to is not None
        and torch.device(to).type == "cpu"
        and arguments[0].device.type != "cpu"
    )


class CountOperators(TorchDispatchMode):
    """Counts operators while it is entered.

    Attributes:
        names: all of them with their overloads, in order.
        launching: of these the ones that compute or copy, each of which launches at least one
            kernel. Views, aliases and allocations launch none.
        waiting: of these the ones that :func:`waits` is true of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.launching: list[str] = []
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return result  # attributes of fake tensors, which real ones have at hand
        name = str(func)
        self.names.append(name)
        if waits(name, args, kwargs):
            self.waiting.append(name)
        if computes(func, args, result):
            self.launching.append(name)
        return result


def computes(func: Any, arguments: Sequence[Any], result: Any) -> bool:
    """Whether an operator that was called computes or copies, and so launches something."""
    if func._schema.is_mutable:
        return True
    given = {tensor.untyped_storage()._cdata for tensor in tensors_in(arguments)}
    made = [tensor.untyped_storage()._cdata for tensor in tensors_in(result)]
    return not _named(str(func), _ALLOCATING) and any(storage not in given for storage in made)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _named(operator: str, names: Sequence[str]) -> bool:
    return operator.startswith(tuple(f"aten.{name}" for name in names))
