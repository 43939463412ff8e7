"""Tasks in a process of their own: one that hangs or breaks the device ends only that process."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.gpu.tasks import NO_TIME_LEFT, Task
from bench.measuring.sweep import BuiltFunctions, first_line
from bench.reporting.progress import progress_bar

Rows = list[dict[str, Any]]


def run_tasks(tasks: Sequence[Task], deadline: float) -> Iterator[Rows]:
    """The rows of one task after the other; those that no time is left for say so.

    Args:
        tasks: what to measure, in this order.
        deadline: when to have ended, in seconds of :func:`time.monotonic`.
    """
    worker: Worker | None = None
    try:
        with progress_bar(len(tasks), "task") as progress:
            for task in tasks:
                progress.set_description(str(task))
                # A later one that takes less time may still be measured.
                if time.monotonic() + task.expected_seconds > deadline:
                    yield task.rows_without_result(NO_TIME_LEFT)
                else:
                    worker = worker or Worker()
                    rows, usable = worker.run(task, deadline)
                    if not usable:
                        worker.stop()
                        worker = None
                    yield rows
                progress.update()
    finally:
        if worker is not None:
            worker.stop()


class Worker:
    """A process that measures, and keeps what is compiled between one task and the next."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,))
        self._process.start()
        # The only other end is the process's, so that its death shows here.
        other.close()

    def run(self, task: Task, deadline: float) -> tuple[Rows, bool]:
        """The task's rows, and whether the worker can take another task."""
        left = deadline - time.monotonic()
        longest = min(task.longest_seconds, left)
        try:
            self._connection.send(task)
            if self._connection.poll(longest):
                return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = f"failed: the process ended with code {self._process.exitcode}"
            return task.rows_without_result(status), False
        if longest == left:
            return task.rows_without_result(NO_TIME_LEFT), False
        status = f"failed: took longer than {longest:.0f} s"
        return task.rows_without_result(status), False

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection) -> None:
    """The process: rows for each task that arrives, until the other end is gone."""
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    built = BuiltFunctions()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            rows = task.run(built)
        # Errors that arrive late, between rounds, belong to no variant.
        except Exception as error:
            rows = task.rows_without_result(f"failed: {first_line(error)}")
        connection.send((rows, _is_usable(task.case.device)))


def _is_usable(device: str) -> bool:
    """Whether the device still works for this process: some errors stay until it ends."""
    if torch.device(device).type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
