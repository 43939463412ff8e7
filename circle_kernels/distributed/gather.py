"""One batch over several processes: gathers whose gradient is that of the whole batch's loss.

Every process computes the loss of the whole gathered batch. That repeats the arithmetic in each
process, and in return the backward pass needs no communication and every process has the true
value. The convention for gradients is that of trainers that average over processes (DDP, FSDP):
the sum over processes of what flows back is the number of processes times the gradient of the
loss, so that the average is the gradient itself.

Collectives of different sizes abort a process or wait for ever. So each gather begins with a header
of one size, after which all processes raise the same error or none does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from circle_kernels.arguments import FLOATING_DTYPES
from circle_kernels.distributed.groups import Group, resolve_group
from circle_kernels.operation.registered import under_transforms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_HEADER = 3  # rows, columns, dtype
_ABSENT = -1


def gather_batch(
    embeddings: Tensor,  # (n, D), n may differ between processes and may be 0
    labels: Tensor,  # (n,) int64
    ref_emb: Tensor | None,  # (m, D), m likewise
    ref_labels: Tensor | None,  # (m,) int64
    group: Group,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # (N, D), (N,), (M, D), (M,)
    """The rows of all processes of ``group`` in the order of their ranks.

    A collective call: every process of the group has to make it, also one without rows.

    Raises:
        TypeError, ValueError: ``group`` is none, see :func:`resolve_group`; or processes differ in
            D, a dtype or whether there are references, which all of them raise.
        RuntimeError: there is no such group yet; or the call is only traced.
    """
    # Also where a compiler looks at the frames that this one calls, though not at this one.
    if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
        from circle_kernels.distributed.untraced import gather_from_all_processes

        return gather_from_all_processes(embeddings, labels, ref_emb, ref_labels, group)
    return gather_batch_now(embeddings, labels, ref_emb, ref_labels, group)


def gather_batch_now(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    group: Group,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """:func:`gather_batch` where no compiler looks on."""
    processes = resolve_group(group)
    _refuse_to_be_traced(embeddings)
    headers = gather_integers(
        [*_header_of(embeddings), *_header_of(ref_emb)], embeddings.device, processes
    )
    for name, first in (("embeddings", 0), ("ref_emb", _HEADER)):
        check_same(
            f"{name} must have the same dtype and number of columns",
            [_describe(*header[first + 1 : first + _HEADER]) for header in headers],
        )
    sizes = [header[0] for header in headers]
    embeddings = _GatherRows.apply(embeddings, sizes, processes)
    labels = gather_rows(labels, sizes, processes)
    if ref_emb is not None and ref_labels is not None:
        sizes = [header[_HEADER] for header in headers]
        ref_emb = _GatherRows.apply(ref_emb, sizes, processes)
        ref_labels = gather_rows(ref_labels, sizes, processes)
    return embeddings, labels, ref_emb, ref_labels


def _refuse_to_be_traced(embeddings: Tensor) -> None:
    """A tracer runs the code once, perhaps in one process alone, on tensors without numbers."""
    here = torch.empty(0, device=embeddings.device)  # fake wherever the collectives' own would be
    if (
        any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in (embeddings, here))
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or under_transforms()
    ):
        raise RuntimeError(
            "group waits for the other processes' rows, which cannot be had while the computation "
            "is only traced (torch.export, make_fx, torch.func, fake or meta tensors): gather "
            "outside of what is traced, or trace with group=None"
        )


def _header_of(matrix: Tensor | None) -> list[int]:
    if matrix is None:
        return [_ABSENT] * _HEADER
    return [*matrix.shape, FLOATING_DTYPES.index(matrix.dtype)]


def _describe(columns: int, dtype: int) -> str:
    return "none" if dtype == _ABSENT else f"{FLOATING_DTYPES[dtype]} of shape (rows, {columns})"


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
        ctx.first_row = sum(sizes[: dist.get_rank(group)])
        ctx.num_rows, ctx.world_size = len(local), len(sizes)
        return gather_rows(local, sizes, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        own = gradient.narrow(0, ctx.first_row, ctx.num_rows)
        return own * ctx.world_size, None, None


def gather_rows(local: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """The rows of all processes, of which there are ``sizes``.

    Collectives need equal shapes: pad to the longest, gather, trim.
    """
    longest = max(sizes)
    if longest == 0:
        return local.clone()
    padded = local.new_zeros(longest, *local.shape[1:])
    padded[: len(local)] = local
    gathered = _all_gather(padded, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def gather_integers(
    numbers: list[int], device: torch.device, group: ProcessGroup
) -> list[list[int]]:
    """The same number of integers of each process, for the host to read."""
    return torch.stack(_all_gather(torch.tensor(numbers, device=device), group)).tolist()


def check_same(wanted: str, kinds: list[str]) -> None:
    """Require one kind in all processes; all of them see all kinds and so raise together."""
    if len(set(kinds)) > 1:
        first = {kind: f"{kind} on rank {kinds.index(kind)}" for kind in kinds}
        raise ValueError(f"{wanted} in all processes of the group; got {', '.join(first.values())}")


def _all_gather(local: Tensor, group: ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.contiguous(), group=group)
    return parts
