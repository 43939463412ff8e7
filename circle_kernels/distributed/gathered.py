"""Everybody's rows with their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from circle_kernels.distributed.collectives import gather_rows, scatter_sums
from circle_kernels.distributed.columns import Spread


class GatheredRows(torch.autograd.Function):
    """The rows of all processes; back goes the sum of what all of them say of this one's."""

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, spread: Spread, dtype: torch.dtype, factor: int = 1
    ) -> Tensor:
        ctx.spread, ctx.dtype, ctx.factor = spread, local.dtype, factor
        # Converted here, so that half types are rounded once, after the sum.
        return gather_rows(local, spread.sizes, spread.group).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        own = scatter_sums(gradient, ctx.spread.sizes, ctx.spread.group)
        return (own * ctx.factor).to(ctx.dtype), None, None, None
