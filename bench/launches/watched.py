"""The node of autograd's graph that a loss is, run without the engine, which asks drivers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circle_kernels.backends.addressable import stand_ins
from circle_kernels.operation.batch import Operation, check_batch
from circle_kernels.operation.row_losses import RowLosses


class NodeOfLoss:
    """Both passes of the loss of a batch, on tensors of any kind."""

    def __init__(self, operation: Operation, reduction: str) -> None:
        self.needs_input_grad: tuple[bool, ...] = ()
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self._operation = operation
        self._reduction = reduction

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """As the context that autograd hands to a function."""
        self.saved_tensors = tensors

    def forward(self, *given: Tensor) -> Tensor:
        """The loss of what users give."""
        with torch.no_grad(), stand_ins():
            batch = check_batch(*given, *(None,) * (4 - len(given)))
            sides = (batch.embeddings, batch.ref_emb)
            self.needs_input_grad = tuple(side is not None and side.requires_grad for side in sides)
            call = (batch, self._operation, self._reduction, True)
            return RowLosses.forward(self, *sides, call)

    def backward(self, loss: Tensor) -> Any:
        """The gradient of the embeddings, from the 1 that autograd begins with."""
        with torch.no_grad(), stand_ins():
            return RowLosses.backward(self, torch.ones_like(loss))[0].detach()
