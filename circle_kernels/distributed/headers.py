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

from circle_kernels.distributed.collectives import gather_integers
from circle_kernels.distributed.groups import Group, resolve_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NUMBERS = 4  # in every header of every call, so that different calls can meet
CALL = "the function that is called"


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
        names = dict.fromkeys(name for each in of_all for name in each)
        # A process that calls something else says nothing of the rest.
        for name in [CALL] if len({each.get(CALL) for each in of_all}) > 1 else names:
            check_same(name, [each.get(name, "nothing") for each in of_all])
    return [each[: len(numbers)] for each in headers]


def digest_of(alike: Mapping[str, object]) -> int:
    """63 bits that are the same in every process for the same names and words."""
    said = repr([(name, str(value)) for name, value in alike.items()])
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big") >> 1


def check_same(name: str, kinds: list[str]) -> None:
    """Require one kind in all processes; all of them see all kinds and so raise together."""
    if len(set(kinds)) > 1:
        first = {kind: f"{kind} on rank {kinds.index(kind)}" for kind in kinds}
        raise ValueError(
            f"{name} must be the same in all processes of the group; "
            f"got {', '.join(first.values())}"
        )


_Checked = TypeVar("_Checked")


def check_together(
    check: Callable[[], _Checked], call: str, group: Group, same_sizes: bool
) -> _Checked:
    """What ``check`` returns, :func:`failing_together` unless ``same_sizes`` says that there are no
    headers, or a compiler looks on."""
    if same_sizes is not False or torch.compiler.is_compiling():
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
            words = f"{call}, which raised {type(error).__name__}: {error}"
            exchange_headers((), {CALL: words}, group)
        raise
