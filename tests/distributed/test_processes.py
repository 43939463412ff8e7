"""A failure in any of a test's processes is that test's failure, and nobody else's."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from tests.distributed.processes import run_processes


def _sum_of_ranks(rank: int, expected: int) -> None:
    total = torch.tensor(rank)
    dist.all_reduce(total)
    assert total == expected


def _fail_alone(rank: int) -> None:
    """The other process waits for this one."""
    if rank == 1:
        raise ValueError("only here")
    dist.barrier()


def _die_alone(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.barrier()


@pytest.mark.parametrize(
    ("function", "message"),
    [(_fail_alone, r"rank 1: .*\n(.*\n)*ValueError: only here"), (_die_alone, "rank 1: the proc")],
    ids=["fails", "dies"],
)
def test_process_that_fails_or_dies_is_named_and_the_next_test_has_others(
    function, message: str
) -> None:
    run_processes(3, _sum_of_ranks, 3)
    with pytest.raises(pytest.fail.Exception, match=message):
        run_processes(2, function)
    run_processes(2, _sum_of_ranks, 1)
