"""What is done to gradients between backward and optimizer, sparse ones included."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from circle_kernels.distributed.collectives import gather_integers, gather_rows
from circle_kernels.distributed.groups import Group, resolve_group
from circle_kernels.distributed.headers import check_same

_NO_GRADIENT = -1  # in the place of a number of rows, as the next
_DENSE = -2


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor] | Tensor, group: Group = "world") -> None:
    """Replace gradients by their mean over processes, as DDP does, where DDP does not.

    For parameters outside of ``DistributedDataParallel``, such as a class head beside a wrapped
    network, and for sparse gradients (``sparse_grad=True``), which it cannot reduce: only rows with
    a gradient travel. Call it between ``backward`` and the optimizer's step; every process then has
    the same gradient, bit by bit.

    A collective call: every process of the group has to make it, with the same parameters in the
    same order. No gradient counts as 0 where another process has one.

    Args:
        parameters: parameters on one device each, of one shape and dtype in all processes.
        group: as for :func:`circle_kernels.circle_loss`.

    Raises:
        TypeError, ValueError, RuntimeError: ``group`` is none; or, in all processes, parameters
            differ between processes.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    processes = resolve_group(group)
    for position, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            rows = _NO_GRADIENT
        elif gradient.is_sparse and gradient.sparse_dim() == 1:
            rows = gradient._nnz()
        else:
            rows = _DENSE
        headers = gather_integers(
            [len(parameters), parameter.numel(), parameter.element_size(), rows], processes
        )
        check_same(
            "parameters",
            [
                f"{number}, of which the one at {position} has {numel} numbers of {size} bytes"
                for number, numel, size, _ in headers
            ],
        )
        sizes = [header[-1] for header in headers]
        if max(sizes) == min(sizes) == _NO_GRADIENT:
            continue
        if _DENSE in sizes:
            parameter.grad = _sum(parameter, processes)
        else:
            parameter.grad = _sum_of_rows(parameter, [max(size, 0) for size in sizes], processes)
        parameter.grad.div_(len(sizes))


def _sum(parameter: Tensor, processes: dist.ProcessGroup) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    elif gradient.is_sparse:
        gradient = gradient.to_dense()
    gradient = gradient.contiguous()
    dist.all_reduce(gradient, group=processes)
    return gradient


def _sum_of_rows(parameter: Tensor, sizes: list[int], processes: dist.ProcessGroup) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        rows = torch.empty(0, dtype=torch.int64, device=parameter.device)
        values = parameter.new_empty(0, *parameter.shape[1:])
    else:
        rows, values = gradient._indices()[0], gradient._values()
    rows, values = (gather_rows(each, sizes, processes) for each in (rows, values))
    return torch.sparse_coo_tensor(
        rows[None], values, parameter.shape, check_invariants=False
    ).coalesce()


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` that takes sparse gradients among dense ones.

    The norm is that of all gradients as one vector; a row that a sparse gradient lists several
    times counts with its sum, and the gradient is replaced by one that lists it once.

    Args:
        parameters: parameters whose gradients are scaled in place.
        max_norm: the norm that they have afterwards at most.
        norm_type: p of the p-norm, ``inf`` for the largest number.
        error_if_nonfinite: raise where the norm is not finite.

    Returns:
        The norm before scaling, a scalar.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite``.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    dense, dense_gradients, sparse_values = [], [], []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = gradient = coalesced(parameter.grad)
            sparse_values.append(gradient._values())
        else:
            dense.append(parameter)
            dense_gradients.append(parameter.grad)
    # The largest of no numbers is an error.
    entries = [each for each in dense_gradients + sparse_values if each.numel() > 0]
    norm = get_total_norm(entries, norm_type, error_if_nonfinite)
    clip_grads_with_norm_(dense, max_norm, norm)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for values in sparse_values:
        values.mul_(scale.to(values.device))
    return norm


def coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient whose rows are different, in order."""
    # A single backward pass of a class loss leaves rows in order, but autograd forgets to say so,
    # and sorting them again can take longer than the rest of the step.
    if gradient.is_coalesced() or gradient.sparse_dim() > 1 or gradient.device.type != "cpu":
        return gradient.coalesce()
    rows = gradient._indices()
    if not bool((rows.diff() > 0).all()):
        return gradient.coalesce()
    return torch.sparse_coo_tensor(
        rows, gradient._values(), gradient.shape, check_invariants=False, is_coalesced=True
    )


def refuse_ddp(weight: Tensor) -> None:
    """Raise where ``weight``, about to get a sparse gradient, is for DDP to synchronise.

    Otherwise DDP's own error comes in the backward pass and names neither.
    """
    ddp = DistributedDataParallel._get_active_ddp_module()
    if ddp is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return
    for name, parameter in ddp.module.named_parameters():
        if parameter is weight and name not in ddp.parameters_to_ignore:
            raise RuntimeError(
                f"DistributedDataParallel cannot reduce the sparse gradient of {name!r}: keep the "
                "class head outside of it, or have it ignore that parameter "
                f"(module._ddp_params_and_buffers_to_ignore = [{name!r}]), and call "
                "circle_kernels.average_gradients after backward; or use sparse_grad=False"
            )
