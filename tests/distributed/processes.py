"""Functions run in several real processes of one gloo group.

The processes serve one test after the other: to start one, and to import what tests need, costs
more than most tests. Each test has a group of its own.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support import batches
from tests.support.apart import CONTEXT

# A process that waits in vain fails after this; the other may be compiling on a busy machine.
TIMEOUT = timedelta(seconds=240)
# Longer, and only where a process waits for something else than another process.
SILENCE = 500.0


@dataclass
class Worker:
    process: BaseProcess
    connection: Connection


@dataclass(frozen=True)
class Task:
    """What every process of a group is asked to do; ``store`` is the file where they meet."""

    store: str
    world_size: int
    function: Callable[..., None]
    arguments: tuple[Any, ...]


_WORKERS: list[Worker] = []


def batch(n: int) -> batches.Batch:
    return batches.batch(
        n, 6, classes=4, random_labels=True, dtype=torch.float64, seed=n, requires_grad=False
    )


def run_processes(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(rank, *arguments)`` in ``world_size`` processes of one gloo group."""
    while len(_WORKERS) < world_size:
        _WORKERS.append(_start())
    with tempfile.TemporaryDirectory() as folder:
        task = Task(f"{folder}/store", world_size, function, arguments)
        waiting = {worker.connection: rank for rank, worker in enumerate(_WORKERS[:world_size])}
        for connection, rank in waiting.items():
            connection.send((rank, task))
        while waiting:
            answered = wait(waiting, SILENCE)
            errors = [(waiting.pop(each), _receive(each)) for each in answered]
            errors = [f"rank {rank}: {error}" for rank, error in errors if error]
            if not answered:
                errors = [f"ranks {sorted(waiting.values())}: no answer for {SILENCE:g} s"]
            if errors:
                _end()  # the others may be waiting for the one that failed
                pytest.fail("\n".join(errors), pytrace=False)


def _start() -> Worker:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _receive(connection: Connection) -> str:
    try:
        return connection.recv()
    except EOFError:
        return "the process died"


def _end() -> None:
    for worker in _WORKERS:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
    _WORKERS.clear()


def _serve(connection: Connection) -> None:
    """Answer each task with its error, or with nothing."""
    torch.set_num_threads(1)
    while True:
        try:
            rank, task = connection.recv()
        except EOFError:
            return
        connection.send(_error_of(rank, task))


def _error_of(rank: int, task: Task) -> str:
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if "torch.distributed.tensor" in sys.modules:
        # It takes meshes of the same ranks for one, also where the groups of the first are gone.
        importlib.import_module("torch.distributed.tensor.debug")._clear_sharding_prop_cache()
    try:
        store = dist.FileStore(task.store, task.world_size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=task.world_size, timeout=TIMEOUT
        )
        task.function(rank, *task.arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        return traceback.format_exc()
    return ""
