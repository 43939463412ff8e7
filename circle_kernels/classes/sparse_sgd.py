"""SGD whose momentum rests where a sparse gradient is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from circle_kernels.distributed.gradients import coalesced
from circle_kernels.distributed.shards import own_part
from circle_kernels.options import check_flag


class SparseSGD(torch.optim.Optimizer):
    """SGD with momentum for sparse gradients: rows without a gradient keep weight and momentum.

    Each row has its own SGD, which takes a step when the row has a gradient, as each has its own
    Adam with ``torch.optim.SparseAdam``. ``torch.optim.SGD``, which this is where all rows have a
    gradient, goes on moving rows by the momentum of earlier steps, and keeps a sparse momentum
    that grows with every row ever touched.

    Args:
        params: parameters or groups, as for every optimizer; for other parameters of a model take
            another optimizer. The weight of a sharded class loss is taken, too: each process moves
            the rows of its shard.
        lr: learning rate.
        momentum: with it each parameter gets a buffer of its own size.
        weight_decay: of rows that have a gradient.
        nesterov: look ahead, as ``torch.optim.SGD`` does.

    Raises:
        ValueError: a number that is negative, or ``nesterov`` without momentum.
        TypeError: a ``nesterov`` that is no boolean.
        RuntimeError: in :meth:`step`, a dense gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
        nesterov = check_flag("nesterov", nesterov)
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum greater than 0, got 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every row that has a gradient; what ``closure`` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        weight, gradient = own_part(parameter), own_part(gradient)
        if not gradient.is_sparse:
            # torch.distributed.checkpoint has an optimizer make its state by a step of nothing.
            if group["lr"] == 0 and not gradient.any():
                self._buffer_of(parameter, group)
                return
            raise RuntimeError(
                "SparseSGD takes sparse gradients (sparse_grad=True), got a dense one of shape "
                f"{tuple(parameter.shape)}; use torch.optim.SGD for it"
            )
        gradient = coalesced(gradient)
        rows, direction = gradient._indices()[0], gradient._values()
        if group["weight_decay"] != 0:
            direction = direction.add(weight.index_select(0, rows), alpha=group["weight_decay"])
        momentum = group["momentum"]
        buffer = self._buffer_of(parameter, group)
        if buffer is not None:
            moved = buffer.index_select(0, rows).mul_(momentum).add_(direction)
            buffer.index_copy_(0, rows, moved)
            direction = direction.add(moved, alpha=momentum) if group["nesterov"] else moved
        weight.index_add_(0, rows, direction, alpha=-group["lr"])

    def _buffer_of(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
        """The momentum of a parameter's numbers in this process, if there is to be any."""
        if group["momentum"] == 0:
            return None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            # Spread over processes as the parameter is, so that checkpoints can spread it anew.
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return own_part(state["momentum_buffer"])
