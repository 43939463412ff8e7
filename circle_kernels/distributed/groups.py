"""Which processes share a batch: what a ``group`` argument may be, and what it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Group: TypeAlias = "ProcessGroup | DeviceMesh | Literal['world']"

_WANTED = (
    "group must be 'world' for all processes, a torch.distributed.ProcessGroup, a DeviceMesh of "
    "one dimension, or None for this process alone"
)


def check_group(group: Group | None) -> None:
    """Require a group of processes, or the name of one, which may not exist yet.

    Raises:
        TypeError: another type.
        ValueError: another name, a mesh of several dimensions, or a group that this process is not
            part of.
    """
    if group is None:
        return
    if isinstance(group, str):
        if group != "world":
            raise ValueError(f"{_WANTED}; got {group!r}")
        return
    if dist.is_available():
        from torch.distributed.device_mesh import DeviceMesh

        if isinstance(group, dist.ProcessGroup):
            return
        if isinstance(group, DeviceMesh):
            _check_mesh(group)
            return
        if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "group is GroupMember.NON_GROUP_MEMBER, which torch.distributed.new_group returns "
                "where this process is not part of the group: only members can share a batch"
            )
    raise TypeError(f"{_WANTED}; got {type(group).__name__} {group!r}")


def _check_mesh(mesh: DeviceMesh) -> None:
    if mesh.ndim != 1:
        name = mesh.mesh_dim_names[0] if mesh.mesh_dim_names else "name"
        hint = (
            f"take the one along which batches differ, as mesh[{name!r}]; where they differ along "
            "all of them, mesh._flatten()"
        )
        if not mesh.mesh_dim_names:
            hint += ", once they have names (mesh_dim_names)"
        raise ValueError(f"{_WANTED}; got a mesh of {mesh.ndim} dimensions, {mesh!r}: {hint}")
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"group {mesh!r} does not have this process: only members can share a batch"
        )


def resolve_group(group: Group) -> ProcessGroup:
    """The process group that ``group`` stands for now.

    Raises:
        TypeError, ValueError: as :func:`check_group`; or the group has been destroyed.
        RuntimeError: ``"world"`` while there are no processes that know each other.
    """
    check_group(group)
    if not isinstance(group, str):
        resolved = group if isinstance(group, dist.ProcessGroup) else group.get_group()
        dist.get_rank(resolved)  # raises where it has been destroyed
        return resolved
    if not dist.is_available():
        raise RuntimeError(
            "group='world' needs torch.distributed, which this build of PyTorch does not have; "
            "pass group=None for this process alone"
        )
    if not dist.is_initialized():
        raise RuntimeError(
            "group='world' needs processes that know each other: call "
            "torch.distributed.init_process_group (trainers do) before the loss is computed, or "
            "pass group=None for this process alone"
        )
    return dist.distributed_c10d._get_default_group()


def group_name(group: Group) -> str:
    """What ops are told of a group: :func:`group_of_name` finds it again.

    With this process's rank and how many there are, which graphs have as constants: torch keeps
    compiled graphs on disk by their ops' arguments, for all processes and later runs.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`resolve_group`.
    """
    processes = resolve_group(group)
    return f"{dist.get_rank(processes)}/{processes.size()}/{processes.group_name}"


# Compilers call it and keep what it returns, as torch.compiler.assume_constant_result has them do,
# whose import would take seconds.
group_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def group_of_name(name: str) -> ProcessGroup:
    """The group of this process that :func:`group_name` named.

    Raises:
        RuntimeError, ValueError: it has been destroyed, or is another one by now.
    """
    rank, size, known = name.split("/", 2)
    group = dist.distributed_c10d._resolve_process_group(known)  # type: ignore[arg-type]
    if (group.rank(), group.size()) != (int(rank), int(size)):
        raise RuntimeError(
            f"the group {known!r} was one of {size} processes with this one as rank {rank}, and is "
            f"now one of {group.size()} with rank {group.rank()}: compile again after "
            "init_process_group"
        )
    return group


def rank_in(group: Group) -> int:
    """This process's place in a group, which compilers take as a constant."""
    return int(group_name(group).split("/", 1)[0])


def describe_group(group: Group | None) -> str:
    """What the repr of a module shows."""
    if dist.is_available() and isinstance(group, dist.ProcessGroup):
        return f"<ProcessGroup {group.group_name!r} of size {group.size()}>"
    return repr(group)


def is_saveable(group: Group | None) -> bool:
    """Whether another process can load what refers to ``group``."""
    return group is None or isinstance(group, str)
