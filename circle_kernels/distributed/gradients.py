"""What is done to gradients between backward and optimizer, sparse ones included."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from circle_kernels.arguments import is_distributed
from circle_kernels.distributed.collectives import gather_numbers, gather_rows
from circle_kernels.distributed.groups import Group, resolve_group
from circle_kernels.distributed.headers import CALL, exchange_headers
from circle_kernels.distributed.shards import own_part, spread_alike, spread_over, with_part

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
        TypeError, ValueError, RuntimeError: ``group`` is none; a parameter is a DTensor; or, in all
            processes, parameters differ between processes.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for position, parameter in enumerate(parameters):
        if is_distributed(parameter):
            raise TypeError(
                "parameters must be those of which each process has a copy, and the one at "
                f"{position}, of shape {tuple(parameter.shape)}, is a DTensor: shards need no "
                "averaging, since the gradient of a class shard is that of the whole batch's loss "
                "already, and fully_shard averages those of a network; leave it out"
            )
    processes = resolve_group(group)
    for position, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            rows = _NO_GRADIENT
        elif gradient.is_sparse and gradient.sparse_dim() == 1:
            rows = gradient._nnz()
        else:
            rows = _DENSE
        alike = {
            CALL: "average_gradients",
            "parameters": f"{len(parameters)}, of which the one at {position} has "
            f"{parameter.numel()} numbers of {parameter.element_size()} bytes",
        }
        sizes = [size for (size,) in exchange_headers([rows], alike, processes)]
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
    """``torch.nn.utils.clip_grad_norm_`` that takes sparse gradients and DTensors among others.

    The norm is that of all gradients as one vector; a row that a sparse gradient lists several
    times counts with its sum, and the gradient is replaced by one that lists it once. Of a DTensor,
    such as the weight of a sharded class loss or what ``fully_shard`` made, the shards of all
    processes count; of all other parameters each process has to have the same gradient, which
    counts once. With DTensors among the parameters it is a collective call: every process has to
    make it with the same parameters in the same order, and all of them get the same norm.

    Args:
        parameters: parameters whose gradients are scaled in place.
        max_norm: the norm that they have afterwards at most.
        norm_type: p of the p-norm, ``inf`` for the largest number.
        error_if_nonfinite: raise where the norm is not finite.

    Returns:
        The norm before scaling, a scalar.

    Raises:
        ValueError: a gradient is not spread over processes as its parameter is.
        RuntimeError: the norm is not finite and ``error_if_nonfinite``.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    # By parameters, not by gradients: those of other processes may be there where ours are not.
    alike: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault(spread_over(parameter), []).append(parameter)
    whole = _entries(alike.pop((), []))
    norm = get_total_norm(whole, norm_type, error_if_nonfinite and not alike)
    if alike:
        norms = [norm, *(_norm_of_shards(of, alike[of], norm_type) for of in alike)]
        norm = get_total_norm(norms, norm_type, error_if_nonfinite)
    dense = [each for each in parameters if each.grad is not None and _is_plain(each.grad)]
    clip_grads_with_norm_(dense, max_norm, norm)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for values in _entries([each for each in parameters if each.grad is not None], plain=False):
        values.mul_(scale.to(values.device))
    return norm


def _is_plain(gradient: Tensor) -> bool:
    return not gradient.is_sparse and not is_distributed(gradient)


def _entries(parameters: list[Tensor], plain: bool = True) -> list[Tensor]:
    """The numbers of gradients, as far as this process has them; with those that are plain."""
    entries = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or (_is_plain(gradient) and not plain):
            continue
        if not spread_alike(gradient, parameter):
            raise ValueError(
                "gradients must be spread over processes as their parameters are; that of a "
                f"parameter of shape {tuple(parameter.shape)} is not"
            )
        own = own_part(gradient)
        if own.is_sparse:
            own = coalesced(own)
            parameter.grad = with_part(gradient, own)
            own = own._values()
        if own.numel() > 0:  # the largest of no numbers is an error
            entries.append(own)
    return entries


def _norm_of_shards(
    groups: tuple[dist.ProcessGroup, ...], parameters: list[Tensor], norm_type: float
) -> Tensor:
    """The norm of gradients of which the processes of these groups have different parts."""
    # What travels has one dtype and lies where the group takes it, also where nothing has a norm.
    is_double = any(each.dtype == torch.float64 for each in parameters)
    norm = get_total_norm(_entries(parameters), norm_type).to(
        own_part(parameters[0]).device, torch.float64 if is_double else torch.float32
    )
    for group in groups:
        # Not all_reduce, whose maximum may lose a NaN.
        norm = torch.linalg.vector_norm(gather_numbers(norm[None], group), norm_type)
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
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return
    name = _name_in_ddp(weight)
    if name is not None:
        raise RuntimeError(
            f"DistributedDataParallel cannot reduce the sparse gradient of {name!r}: keep the "
            "class head outside of it, or have it ignore that parameter "
            f"(module._ddp_params_and_buffers_to_ignore = [{name!r}]), and call "
            "circle_kernels.average_gradients after backward; or use sparse_grad=False"
        )


def refuse_shards_in_ddp(weight: Tensor) -> None:
    """Raise where ``weight``, of which each process has a shard, is for DDP to make the same."""
    name = _name_in_ddp(weight)
    if name is not None:
        raise RuntimeError(
            f"DistributedDataParallel would make the shards {name!r} of all processes the same: "
            "wrap the network alone and keep the sharded class head outside of it; the gradient "
            "of a shard needs no averaging"
        )


def _name_in_ddp(weight: Tensor) -> str | None:
    """The name of a parameter that the wrapper in whose forward pass we are would synchronise."""
    ddp = DistributedDataParallel._get_active_ddp_module()
    if ddp is None:
        return None
    for name, parameter in ddp.module.named_parameters():
        if parameter is weight and name not in ddp.parameters_to_ignore:
            return name
    return None
