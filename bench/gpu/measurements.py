"""Tasks in processes of their own: one that hangs or breaks the device ends only its process."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.gpu.tasks import NO_TIME_LEFT, Rows, Task
from bench.measuring.errors import first_line
from bench.measuring.sweep import BuiltFunctions
from bench.measuring.worker import Answer, TookTooLongError, Worker, WorkerError
from bench.reporting.progress import progress_bar


def run_tasks(tasks: Sequence[Task], deadline: float, processes: int = 1) -> Iterator[Rows]:
    """The rows of each task as they come; those that no time is left for say so.

    Args:
        tasks: what to run, begun in this order.
        deadline: when to have ended, in seconds of :func:`time.monotonic`.
        processes: how many run at once: several where compiling is what takes the time, one where
            times are measured.
    """
    count = min(processes, len(tasks))
    workers = [Worker(_start, count) for _ in range(count)]
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    found: queue.SimpleQueue[Rows | BaseException] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work(worker: Worker) -> None:
        try:
            while True:
                found.put(_rows_of(worker, waiting.get_nowait(), deadline))
        except queue.Empty:
            pass
        # Of this program: what a task raises is a row.
        except BaseException as error:
            found.put(error)

    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in workers]
    try:
        for thread in threads:
            thread.start()
        with progress_bar(len(tasks), "task") as progress:
            for _ in tasks:
                rows = found.get()
                if isinstance(rows, BaseException):
                    raise rows
                progress.set_description(f"{rows[0]['kind']} {rows[0]['variant']}")
                progress.update()
                yield rows
    finally:
        # Also where somebody interrupts, or wants no more rows.
        while not waiting.empty():
            waiting.get()
        for worker, thread in zip(workers, threads, strict=True):
            worker.stop()
            while thread.is_alive():
                # It may have been about to begin a task, and with it another process.
                thread.join(0.2)
                worker.stop()


def most_processes(memory_share: int) -> int:
    """How many run at once: one for each core, as long as so many share the device's memory."""
    return max(1, min(memory_share, os.cpu_count() or 1))


def _rows_of(worker: Worker, task: Task, deadline: float) -> Rows:
    """The task's rows, or why there are none."""
    left = deadline - time.monotonic()
    # A later one that takes less time may still be run.
    if task.expected_seconds > left:
        return task.rows_without_result(NO_TIME_LEFT)
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


def _start(processes: int) -> Answer:
    """In the process: what is compiled is kept between one task and the next."""
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
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
