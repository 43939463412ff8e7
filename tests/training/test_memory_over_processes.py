"""One memory in several processes: the rows of all, in the order of their ranks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist

from circle_kernels import EmbeddingMemory
from tests.distributed.processes import run_processes
from tests.training.test_memory import DIM, assert_same_memory, rows

# Rows of each process in each step; of the last more than the memory holds.
STEPS = {2: ((3, 3), (0, 4), (5, 1), (0, 0), (2, 7), (9, 8)), 3: ((1, 2, 3), (4, 0, 0), (2, 2, 2))}
SIZE = 11


def _fill(rank: int) -> None:
    memory = EmbeddingMemory(SIZE, DIM, group="world")
    alone = EmbeddingMemory(SIZE, DIM)
    for step, sizes in enumerate(STEPS[dist.get_world_size()]):
        embeddings, labels = rows(sum(sizes), step, dtype=torch.float64)
        parts = embeddings.split(sizes), labels.int().split(sizes)
        own = memory.enqueue(parts[0][rank], parts[1][rank])
        expected = alone.enqueue(embeddings, labels)
        assert torch.equal(own, expected.split(sizes)[rank])
        assert_same_memory(memory, alone)


@pytest.mark.parametrize("processes", [2, 3])
def test_is_that_of_one_process_with_all_rows(processes: int) -> None:
    run_processes(processes, _fill)


def _differ(rank: int) -> None:
    memory = EmbeddingMemory(SIZE + rank, DIM, group="world")
    with pytest.raises(ValueError, match=r"size must be the same in all processes .* 11 on rank 0"):
        memory.enqueue(*rows(2))
    memory = EmbeddingMemory(SIZE, DIM, group="world", dtype=(torch.half, torch.float)[rank])
    with pytest.raises(ValueError, match="dtype must be the same in all processes"):
        memory.enqueue(*rows(2))
    memory = EmbeddingMemory(SIZE, DIM, group="world")
    if rank == 1:
        memory.enqueued.fill_(3)
    with pytest.raises(ValueError, match=r"enqueued must be the same .* 0 on rank 0, 3 on rank 1"):
        memory.enqueue(*rows(2))
    memory = EmbeddingMemory(SIZE, DIM, group="world")
    embeddings, labels = rows(2)
    error, message = (
        (ValueError, r"EmbeddingMemory.enqueue raised in another .* rank 1: TypeError: labels must")
        if rank == 0
        else (TypeError, "labels must be integers")
    )
    with pytest.raises(error, match=message):
        memory.enqueue(embeddings, labels.float() if rank == 1 else labels)
    assert memory.filled == 0


def test_all_processes_raise_where_one_does_or_they_differ() -> None:
    run_processes(2, _differ)


def _save(rank: int) -> None:
    memory = EmbeddingMemory(SIZE, DIM, group=dist.group.WORLD)
    memory.enqueue(*rows(2, rank))
    with pytest.raises(TypeError, match="cannot be saved as an object"):
        pickle.dumps(memory)
    copied = copy.deepcopy(memory)
    assert copied.group is memory.group
    named = EmbeddingMemory(SIZE, DIM, group="world")
    named.load_state_dict(memory.state_dict())
    for each in (copied, pickle.loads(pickle.dumps(named))):
        each.enqueue(*rows(3, 5))
        assert each.filled == 10
    assert memory.filled == 4


def test_memory_of_a_group_is_copied_and_saved() -> None:
    run_processes(2, _save)
