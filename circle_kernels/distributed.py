"""One batch over several processes: gathers whose gradient is that of the whole batch's loss.

Every process computes the loss of the whole gathered batch. That repeats the arithmetic in each
process, and in return the backward pass needs no communication and every process has the true
value. The convention for gradients is that of trainers that average over processes (DDP, FSDP):
the sum over processes of what flows back is the number of processes times the gradient of the
loss, so that the average is the gradient itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_batch(
    embeddings: Tensor,  # (n, D), n may differ between processes and may be 0
    labels: Tensor,  # (n,)
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:  # (N, D), (N,)
    """The rows of all processes of ``group`` in the order of their ranks.

    A collective call: every process of the group has to make it, also one without rows.

    Raises:
        TypeError: ``group`` is no process group.
        RuntimeError: this process is not part of the group.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group must be a torch.distributed.ProcessGroup (for example "
            f"torch.distributed.group.WORLD) or None for this process alone, got {group!r}"
        )
    rows = torch.tensor([len(embeddings)], device=embeddings.device)
    sizes = [int(size) for size in _all_gather(rows, group)]
    return (
        _GatherRows.apply(embeddings, sizes, group),
        _gather_rows(labels.to(embeddings.device), sizes, group),
    )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.first_row = sum(sizes[: dist.get_rank(group)])
        ctx.num_rows, ctx.world_size = len(local), len(sizes)
        return _gather_rows(local, sizes, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        own = gradient.narrow(0, ctx.first_row, ctx.num_rows)
        return own * ctx.world_size, None, None


def _gather_rows(local: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Collectives need equal shapes: pad to the longest, gather, trim."""
    longest = max(sizes)
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    gathered = _all_gather(padded, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def _all_gather(local: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.contiguous(), group=group)
    return parts
