"""Tasks in a process of their own: one that hangs or breaks the device ends only that process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.gpu.tasks import NO_TIME_LEFT, Task
from bench.measuring.errors import first_line
from bench.measuring.sweep import BuiltFunctions
from bench.measuring.worker import Answer, TookTooLongError, Worker, WorkerError
from bench.reporting.progress import progress_bar

Rows = list[dict[str, Any]]


def run_tasks(tasks: Sequence[Task], deadline: float) -> Iterator[Rows]:
    """The rows of one task after the other; those that no time is left for say so.

    Args:
        tasks: what to measure, in this order.
        deadline: when to have ended, in seconds of :func:`time.monotonic`.
    """
    with Worker(_start) as worker, progress_bar(len(tasks), "task") as progress:
        for task in tasks:
            progress.set_description(str(task))
            # A later one that takes less time may still be measured.
            if time.monotonic() + task.expected_seconds > deadline:
                yield task.rows_without_result(NO_TIME_LEFT)
            else:
                yield _run_task(worker, task, deadline - time.monotonic())
            progress.update()


def _run_task(worker: Worker, task: Task, left: float) -> Rows:
    """The task's rows; ``left`` seconds are what there is for it."""
    try:
        rows, usable = worker.ask(task, min(task.longest_seconds, left))
    except TookTooLongError as error:
        late = left <= task.longest_seconds
        return task.rows_without_result(NO_TIME_LEFT if late else f"failed: {error}")
    except WorkerError as error:
        return task.rows_without_result(f"failed: {error}")
    if not usable:
        worker.stop()
    return rows


def _start() -> Answer:
    """In the process: what is compiled is kept between one task and the next."""
    built = BuiltFunctions()

    def answer(task: Task, tell: Callable[[Any], None]) -> tuple[Rows, bool]:
        try:
            rows = task.run(built)
        # Errors that arrive late, between rounds, belong to no variant.
        except Exception as error:
            rows = task.rows_without_result(f"failed: {first_line(error)}")
        return rows, _is_usable(task.case.device)

    return answer


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
