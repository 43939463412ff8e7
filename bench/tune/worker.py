"""Settings are tried in a process of their own: some end it.

A compiler that fails an assertion takes its process with it, and a kernel that fails can leave the
device unusable for its process. The settings at fault are then left out, and the rest goes on in
another process.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.measuring.sweep import first_line
from bench.tune.choice import choose_settings, new_row, to_try
from bench.tune.grid import Hardware
from bench.tune.passes import Job, measure
from circle_kernels.backends.triton.settings import Settings

# Seconds for one of the settings, which may compile a dozen kernels, and for what comes between: a
# process starts, and all that run are timed.
_PATIENCE = 300.0
_PATIENCE_OTHERWISE = 600.0

Choice = tuple[Settings | None, dict[str, Any]]


class Worker:
    """Chooses settings in another process; a context manager."""

    def __init__(
        self,
        hardware: Hardware,
        quick: bool,
        choose: Callable[..., Choice] = choose_settings,
        patience: float = _PATIENCE,
    ) -> None:
        self._arguments = (hardware, quick, choose)
        self._patience = patience
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def choose(self, job: Job, tried: Callable[[], None]) -> Choice:
        """As :func:`choose_settings`; ``tried`` is called for each of a job's settings.

        Where what failed is not one of the settings, the row says so under ``"failed"``.
        """
        broken: dict[Settings, str] = {}
        done: set[Settings] = set()
        while True:
            settings: Settings | None = None
            connection = self._connection or self._start()
            try:
                connection.send((job, broken))
                while True:
                    patience = _PATIENCE_OTHERWISE if settings is None else self._patience
                    if not connection.poll(patience):
                        reason = f"took longer than {patience:.0f} s"
                        break
                    kind, content = connection.recv()
                    if kind == "found":
                        return content
                    if kind == "failed":
                        reason = content
                        break
                    settings = content
                    if settings is not None and settings not in done:
                        done.add(settings)
                        tried()
            except (EOFError, ConnectionError):
                self._process.join()
                reason = f"the process ended with code {self._process.exitcode}"
            self._stop()
            if settings is None or settings in broken:
                hardware, quick, _ = self._arguments
                row = new_row(job, to_try(job, hardware, quick)[0])
                return None, {**row, "failed": reason}
            broken[settings] = f"failed: {reason}"

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        connection, other = context.Pipe()
        self._connection = connection
        self._process = context.Process(target=_serve, args=(other, *self._arguments))
        self._process.start()
        # The only other end is the process's, so that its death shows here.
        other.close()
        return connection

    def _stop(self) -> None:
        """End the process, whatever it does."""
        if self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._connection = None


def _serve(
    connection: Connection, hardware: Hardware, quick: bool, choose: Callable[..., Choice]
) -> None:
    """The process: a choice for each job that arrives, until the other end is gone."""
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def trying(settings: Settings | None) -> None:
        connection.send(("trying", settings))

    while True:
        try:
            job, broken = connection.recv()
        except EOFError:
            return
        try:
            found = choose(job, hardware, quick, broken, trying, measure)
        except Exception as error:
            connection.send(("failed", first_line(error)))
            return
        connection.send(("found", found))
