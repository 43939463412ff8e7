"""A process that dies or stalls leaves the others with torch's error, within their timeout."""

from __future__ import annotations

import os
import signal
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from circle_kernels import circle_loss
from tests.distributed.processes import batch
from tests.support.apart import CONTEXT

PROCESSES = 3
LOST = 1  # the rank of the process that will be missing
PATIENCE = 6.0  # seconds that a collective waits for others
LIMIT = 60.0  # in which all have to know; starting takes most of them


def _serve(rank: int, store: str, how: dict[str, str], answers: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, PROCESSES),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE),
    )
    rows, labels = batch(6)
    rows.requires_grad_()

    def compute() -> torch.Tensor:
        return circle_loss(rows, labels, group="world", exchange=how["exchange"])

    loss = compute()  # everybody is here
    if rank == LOST:
        answers.send("ready")
        if how["end"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(LIMIT)
    try:
        if how["pass"] == "forward":
            compute()
        else:
            loss.backward()
    except RuntimeError:
        answers.send(traceback.format_exc())
    else:
        answers.send("no error")


@pytest.mark.parametrize(
    "how",
    [
        {"end": "killed", "pass": "forward", "exchange": "gather"},
        {"end": "killed", "pass": "backward", "exchange": "ring"},
        {"end": "stalled", "pass": "forward", "exchange": "ring"},
        {"end": "stalled", "pass": "backward", "exchange": "gather"},
    ],
    ids=lambda how: "-".join(how.values()),
)
def test_others_raise_within_their_timeout(how: dict[str, str], tmp_path: Path) -> None:
    processes, connections = [], []
    for rank in range(PROCESSES):
        ours, theirs = CONTEXT.Pipe()
        arguments = (rank, str(tmp_path / "store"), how, theirs)
        processes.append(CONTEXT.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
        connections.append(ours)
    try:
        deadline = time.monotonic() + LIMIT
        for rank in sorted(range(PROCESSES), key=lambda rank: rank != LOST):
            assert connections[rank].poll(deadline - time.monotonic()), f"rank {rank} hangs"
            answer = connections[rank].recv()
            if rank != LOST:
                assert "Error" in answer
                assert f"of rank {rank} over the {PROCESSES} processes" in answer or (
                    not hasattr(Exception, "add_note")
                )
    finally:
        for process in processes:
            process.kill()
            process.join()
