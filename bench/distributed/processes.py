"""A group of processes, each with one thread, seen from the one that asks them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.distributed.ranks import start
from bench.measuring.memory import RETURN_FREED_MEMORY
from bench.measuring.worker import Worker

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", **RETURN_FREED_MEMORY}
# Longer than the processes wait for one another.
_SECONDS = 300.0


class Group:
    """Processes that share batches over gloo. A context manager; it ends them."""

    def __init__(self, processes: int) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        store = str(Path(folder) / "store")
        self._workers = [
            self._stack.enter_context(Worker(start, rank, processes, store))
            for rank in range(processes)
        ]

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def ask(self, *request: Any) -> list[Any]:
        """The answers of all, by rank.

        Raises:
            WorkerError: there is none from one of them; all have been stopped.
        """
        with ThreadPoolExecutor(len(self._workers)) as threads, _environment():
            asked = [threads.submit(worker.ask, request, _SECONDS) for worker in self._workers]
            try:
                for each in as_completed(asked):
                    each.result()
            except BaseException:
                # The others may be waiting for the one that failed.
                for worker in self._workers:
                    worker.stop()
                raise
        return [each.result() for each in asked]


def ask_first_of(processes: int, *request: Any) -> Any:
    """The answer of one process that takes itself for the first of so many, which are not there.

    Raises:
        WorkerError: there is none.
    """
    with _environment(), Worker(start, 0, processes, "") as worker:
        return worker.ask(request, _SECONDS)


@contextmanager
def _environment() -> Iterator[None]:
    """What processes find that are started meanwhile."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
