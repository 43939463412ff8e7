"""The one place of the benchmarks that reaches into the package: to watch a loss on fake tensors.

In eager mode the loss is one node of autograd's graph, made for tensors that nobody watches. Who
counts operators does watch, fake tensors have no memory, and autograd's engine would ask a driver
for streams: the loss then takes the path for compilers, which is another one. Until the package has
a switch for it, what decides that is replaced here for as long as something is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends import choice
from circle_kernels.operation import row_losses


class NodeOfLoss:
    """The loss' node of autograd's graph, run without autograd's engine."""

    def __init__(self) -> None:
        self.needs_input_grad: tuple[bool, ...] = ()
        self.saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """As the context that autograd hands to a function."""
        self.saved_tensors = tensors

    def forward(self, *arguments: Any) -> Tensor:
        """The loss; in place of ``apply``."""
        self.needs_input_grad = tuple(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        *given, _ = arguments  # without a gradient, as it is here, nothing is kept
        return row_losses._RowLosses.forward(self, *given, True)

    def backward(self, loss: Tensor) -> Tensor:
        """The gradient of the embeddings, from the 1 that autograd begins with."""
        return row_losses._RowLosses.backward(self, torch.ones_like(loss))[0].detach()


@contextlib.contextmanager
def node_of_loss() -> Iterator[NodeOfLoss]:
    """Have the loss run as this node, on tensors of any kind."""
    node = NodeOfLoss()
    with torch.no_grad(), as_if_unwatched(), _set(row_losses._RowLosses, "apply", node.forward):
        yield node


@contextlib.contextmanager
def as_if_unwatched() -> Iterator[None]:
    """Have the loss take the path of tensors that hold their numbers and that nobody watches."""
    with (
        _set(row_losses, "is_in_torch_dispatch_mode", _no),
        _set(row_losses, "is_traced", _no),
        _set(choice, "all_addressable", lambda *tensors: True),
    ):
        yield


def _no(*arguments: Any) -> bool:
    return False


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)  # which a parent has
        else:
            setattr(owner, name, before)
