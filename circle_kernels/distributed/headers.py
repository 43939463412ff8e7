"""What processes tell one another before data moves: sizes, and whether they agree.

Collectives of different sizes abort a process or wait for ever, and different hyper-parameters give
a number that is silently wrong. So each call begins with a header of one size, after which all
processes raise the same error or none does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from circle_kernels.distributed.collectives import gather_integers
from circle_kernels.distributed.groups import Group, resolve_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NUMBERS = 4  # in every header of every call, so that different calls can meet
CALL = "the function that is called"
_RAISED = "what was raised"


def exchange_headers(
    numbers: Sequence[int], alike: Mapping[str, object], group: ProcessGroup
) -> list[list[int]]:
    """The numbers of each process, in the order of ranks.

    A collective call: every process of the group has to make it.

    Args:
        numbers: at most four integers that may differ between processes.
        alike: by name what has to be the same in all processes, in the order in which users are
            told; :data:`CALL` is one of them.
        group: the processes.

    Raises:
        ValueError: in all processes, something differs between them; the message names it.
    """
    header = [*numbers, *[0] * (_NUMBERS - len(numbers)), digest_of(alike)]
    headers = gather_integers(header, group)
    if len({each[-1] for each in headers}) > 1:
        of_all: list[dict[str, str]] = [{} for _ in headers]
        said = {name: str(value) for name, value in alike.items()}
        dist.all_gather_object(of_all, said, group=group)
        _say_what_differs(of_all, group)
    return [each[: len(numbers)] for each in headers]


def _say_what_differs(of_all: list[dict[str, str]], group: ProcessGroup) -> None:
    raised = [
        f"{_rank_of(place, group)}: {said[_RAISED]}"
        for place, said in enumerate(of_all)
        if _RAISED in said
    ]
    if raised:
        calls = " and ".join(dict.fromkeys(said[CALL] for said in of_all if _RAISED in said))
        raise ValueError(
            f"{calls} raised in another process of the group, so that all raise; "
            f"{'; '.join(raised)}"
        )
    # A process that calls something else says other things of it.
    differ = len({said[CALL] for said in of_all}) > 1
    for name in [CALL] if differ else of_all[0]:
        check_same(name, [said[name] for said in of_all], group)


def digest_of(alike: Mapping[str, object]) -> int:
    """63 bits that are the same in every process for the same names and words."""
    said = repr([(name, str(value)) for name, value in alike.items()])
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big") >> 1


def check_same(name: str, kinds: list[str], group: ProcessGroup) -> None:
    """Require one kind in all processes; all of them see all kinds and so raise together."""
    if len(set(kinds)) > 1:
        first = {kind: f"{kind} on {_rank_of(kinds.index(kind), group)}" for kind in kinds}
        raise ValueError(
            f"{name} must be the same in all processes of the group; "
            f"got {', '.join(first.values())}"
        )


def _rank_of(place: int, group: ProcessGroup) -> str:
    """A process of a group under the number that it has among all."""
    rank = dist.get_global_rank(group, place)
    return f"rank {rank}" if rank == place else f"rank {rank} ({place} of the group)"


_Checked = TypeVar("_Checked")


def check_together(
    check: Callable[[], _Checked], call: str, group: Group, same_sizes: bool
) -> _Checked:
    """What ``check`` returns, :func:`failing_together` unless ``same_sizes`` says that there are no
    headers, or a compiler or a tracer looks on, perhaps in this process alone."""
    if same_sizes is True or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return check()
    with failing_together(call, resolve_group(group)):
        return check()


@contextmanager
def failing_together(call: str, group: ProcessGroup) -> Iterator[None]:
    """Have an error that is raised inside, before any header, raise in the other processes, too.

    They would wait for this one otherwise, up to their timeout.
    """
    try:
        yield
    except Exception as error:
        with suppress(ValueError):  # what the others raise
            raised = f"{type(error).__name__}: {error}"
            exchange_headers((), {CALL: call, _RAISED: raised}, group)
        raise
