"""Tensors of which each process has a part: DTensors, not imported before anyone has one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from circle_kernels.arguments import describe, is_distributed
from circle_kernels.distributed.groups import Group, resolve_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, with its memory, not for autograd; others as they are."""
    if not is_distributed(tensor):
        return tensor
    # With gradients enabled this would be a view, which sparse tensors do not have.
    with torch.no_grad():
        return cast("DTensor", tensor).to_local()


def with_part(like: Tensor, part: Tensor) -> Tensor:
    """``part`` as this process's part of a tensor that is spread as ``like`` is, sparse or not."""
    if not is_distributed(like):
        return part
    # Not from_local, which takes a view of the part.
    spec = cast("DTensor", like)._spec
    return type(cast(Any, like))(part, spec, requires_grad=False)


def spread_over(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """The groups whose processes have different parts of a tensor; none where all have all."""
    if not is_distributed(tensor):
        return ()
    mesh, placements = cast("DTensor", tensor).device_mesh, cast("DTensor", tensor).placements
    return tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(placements)
        if not placement.is_replicate()
    )


def spread_alike(first: Tensor, second: Tensor) -> bool:
    """Whether each process has the same part of both, or all of both."""
    if not is_distributed(first) or not is_distributed(second):
        return is_distributed(first) == is_distributed(second)
    one, other = cast("DTensor", first), cast("DTensor", second)
    return one.placements == other.placements and one.device_mesh == other.device_mesh


def add_to_gradient(parameter: Tensor, part: Tensor) -> None:
    """Add this process's part of a gradient, which may be sparse, to that of a DTensor.

    What autograd would do, if it could add sparse parts.
    """
    with torch.no_grad():
        before = parameter.grad
        # A sparse tensor can be added to a dense one, but not the other way round.
        part = part if before is None else own_part(before) + part
        parameter.grad = with_part(parameter, part)


def mesh_of(group: Group, device: torch.device | None) -> tuple[DeviceMesh, torch.device]:
    """A mesh of one dimension for a group, and where this process has its part of a tensor on it.

    Raises:
        TypeError, ValueError: ``group`` is none, or is not where ``device`` is.
        RuntimeError: ``"world"`` before there are processes that know each other.
    """
    if isinstance(group, str) and group == "world" and not _are_processes():
        raise RuntimeError(
            "group='world' needs processes that know each other when the shards are made: call "
            "torch.distributed.init_process_group first, or take the loss of the same name "
            "without shards for one process alone"
        )
    if group is None:
        raise TypeError(
            "group must have the processes that hold the shards: 'world', a "
            "torch.distributed.ProcessGroup or a DeviceMesh of one dimension; got None"
        )
    processes = resolve_group(group)
    from torch.distributed.device_mesh import DeviceMesh

    usual = torch.get_default_device()
    if isinstance(group, DeviceMesh):
        kinds = [group.device_type]
    else:
        kinds = [each.type for each in processes._device_types]
    if device is None:
        device = usual if usual.type in (*kinds, "meta") else torch.device(kinds[0])
    if device.type == "meta" and isinstance(group, DeviceMesh):
        return group, device
    if device.type not in kinds:
        raise ValueError(
            f"device must be one of the group's ({', '.join(kinds)}), or 'meta' with a DeviceMesh "
            f"as group; got {str(device)!r}"
        )
    if isinstance(group, DeviceMesh):
        return group, device
    return DeviceMesh.from_group(processes, device.type), device


def empty_shards(
    shape: tuple[int, int],
    mesh: DeviceMesh,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Tensor:
    """A matrix without numbers whose rows are spread over the processes of a mesh."""
    from torch.distributed.tensor import DTensor, Shard

    rows, columns = shape
    # As torch.chunk: who reads a checkpoint expects no other split.
    longest = math.ceil(rows / mesh.size())
    own = max(0, min(longest, rows - longest * mesh.get_local_rank()))
    part = torch.empty(own, columns, device=device, dtype=dtype)
    return DTensor.from_local(
        part, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=(columns, 1)
    )


def check_shards(name: str, tensor: Tensor) -> ProcessGroup:
    """Require rows that are spread over the processes of one group, which is returned.

    Raises:
        TypeError, ValueError: something else.
    """
    wanted = (
        f"{name} must be a DTensor with the placement Shard(0) on a DeviceMesh of one dimension, "
        "as the constructor makes it"
    )
    if not is_distributed(tensor):
        raise TypeError(f"{wanted}; got {describe(tensor)} that is none")
    spread = cast("DTensor", tensor)
    if spread.device_mesh.ndim != 1 or not spread.placements[0].is_shard(0):
        raise ValueError(f"{wanted}; got {spread.placements} on {spread.device_mesh}")
    if tensor.device.type != spread.device_mesh.device_type:
        raise ValueError(
            f"{name} must be where the processes of its DeviceMesh exchange tensors: wanted "
            f"{spread.device_mesh.device_type!r}, got {str(tensor.device)!r}; shards are not "
            "moved, pass device= to the constructor"
        )
    return spread.device_mesh.get_group()


def _are_processes() -> bool:
    return dist.is_available() and dist.is_initialized()
