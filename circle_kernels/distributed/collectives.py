"""What processes exchange, by the collectives of ``torch.distributed`` and without autograd.

Rows travel as they are, also where processes have different numbers of them; only sums over
processes are padded.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.distributed import ProcessGroup


def gather_rows(local: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:  # (N, ...)
    """The rows of all processes in the order of their ranks; ``sizes`` says how many each has."""
    local = local.contiguous()
    gathered = local.new_empty(sum(sizes), *local.shape[1:])
    if gathered.numel() == 0:
        return gathered
    if min(sizes) == max(sizes):
        _all_gather(_as_bytes(gathered), _as_bytes(local), group)
        return gathered
    parts = gathered.split(list(sizes))
    rank = dist.get_rank(group)
    parts[rank].copy_(local)
    others = [each for each in range(len(sizes)) if each != rank]
    exchange(
        [(local, each) for each in others],
        [(parts[each], each) for each in others],
        group,
    )
    return gathered


def gather_numbers(numbers: Tensor, group: ProcessGroup) -> Tensor:  # (processes, K), of (K,) each
    """The same number of numbers of each process."""
    processes = dist.get_world_size(group)
    gathered = numbers.new_empty(processes * len(numbers))
    _all_gather(gathered, numbers.contiguous(), group)
    return gathered.view(processes, -1)


def gather_integers(numbers: Sequence[int], group: ProcessGroup) -> list[list[int]]:
    """:func:`gather_numbers` for the host to read; only a device that the group needs waits."""
    return gather_numbers(torch.tensor(numbers, device=_device_of(group)), group).tolist()


def scatter_sums(
    rows: Tensor,  # (N, ...)
    sizes: Sequence[int],
    group: ProcessGroup,
) -> Tensor:  # (sizes of this process, ...)
    """This process's rows of the sum over processes, each of which has a summand for all rows."""
    longest = max(sizes)
    if longest == 0:
        return rows.new_empty(rows.shape)
    padded = rows.contiguous()
    if min(sizes) < longest:  # which reductions do not take
        padded = rows.new_zeros(len(sizes), longest, *rows.shape[1:])
        for part, given in zip(padded, rows.split(list(sizes)), strict=True):
            part[: len(given)] = given
        padded = padded.flatten(0, 1)
    own = rows.new_empty(longest, *rows.shape[1:])
    _reduce_scatter(own, padded, group)
    return own[: sizes[dist.get_rank(group)]]


def exchange(
    sent: Sequence[tuple[Tensor, int]],  # what goes to which rank of the group
    received: Sequence[tuple[Tensor, int]],  # memory for what comes from which
    group: ProcessGroup,
) -> None:
    """Send tensors from process to process and wait until they and the others have arrived."""
    wait_for(start_exchange(sent, received, group), group)


def start_exchange(
    sent: Sequence[tuple[Tensor, int]],
    received: Sequence[tuple[Tensor, int]],
    group: ProcessGroup,
) -> list[dist.Work]:
    """:func:`exchange` without waiting, so that something can be computed meanwhile."""
    operations = [
        dist.P2POp(move, _as_bytes(tensor), dist.get_global_rank(group, rank), group)
        for move, tensors in ((dist.isend, sent), (dist.irecv, received))
        for tensor, rank in tensors
        if tensor.numel() > 0
    ]
    if not operations:
        return []
    with _named("exchange of rows", group):
        return dist.batch_isend_irecv(operations)


def wait_for(works: Sequence[dist.Work], group: ProcessGroup) -> None:
    """Wait until what was sent and received has arrived."""
    with _named("exchange of rows", group):
        for work in works:
            work.wait()


def _all_gather(gathered: Tensor, local: Tensor, group: ProcessGroup) -> None:
    # Its name from PyTorch 2.13 on, where the older one warns.
    newest = "all_gather_single"
    gather = getattr(dist, newest if hasattr(dist, newest) else "all_gather_into_tensor")
    with _named("all-gather", group):
        gather(gathered, local, group=group)


def _reduce_scatter(own: Tensor, rows: Tensor, group: ProcessGroup) -> None:
    newest = "reduce_scatter_single"
    reduce = getattr(dist, newest if hasattr(dist, newest) else "reduce_scatter_tensor")
    with _named("reduce-scatter", group):
        reduce(own, rows, group=group)


@contextmanager
def _named(collective: str, group: ProcessGroup) -> Iterator[None]:
    """Have torch's own errors say what failed: a process that died or stalled, most of the time."""
    try:
        yield
    except RuntimeError as error:
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(
                f"circle_kernels: in the {collective} of rank {dist.get_rank(group)} over the "
                f"{dist.get_world_size(group)} processes of group {group.group_name!r}"
            )
        raise


def _as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as every backend moves it, whatever its dtype and its shape."""
    # Of sizes of 1 contiguous tensors may have any strides, which views as bytes do not take.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _device_of(group: ProcessGroup) -> torch.device:
    """Where numbers travel that the host reads: the CPU, unless the group has devices only."""
    devices = {device.type: device for device in group._device_types}
    return devices.get("cpu") or next(iter(devices.values()))
