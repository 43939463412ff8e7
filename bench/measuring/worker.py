"""A process of its own for what may hang, or end or break the process that does it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.measuring.errors import first_line

# What the process does: it makes an answer of a request, and may tell of it on the way.
Answer = Callable[[Any, Callable[[Any], None]], Any]


class WorkerError(Exception):
    """There is no answer; the message says why."""


class TookTooLongError(WorkerError):
    """Nothing came for too long."""


class Worker:
    """Answers requests in another process, which keeps what it has between one and the next.

    The process starts with the first request, and again with the first after it was stopped. A
    context manager; where there is no answer to a request, the process is stopped.

    Args:
        start: called in the process with the arguments, returns what answers. It has to be found in
            its module by its name.
    """

    def __init__(self, start: Callable[..., Answer], *arguments: Any) -> None:
        self._start = start
        self._arguments = arguments
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def ask(self, request: Any, seconds: float, told: Callable[[Any], float] | None = None) -> Any:
        """The answer to a request.

        Args:
            request: what to answer.
            seconds: how long to wait.
            told: called with what the process tells on the way; says how long to wait then.

        Raises:
            TookTooLongError: neither the answer nor anything else came for so long.
            WorkerError: the process ended, or answering raised an exception.
        """
        try:
            connection = self._connected()
            connection.send(request)
            while connection.poll(seconds):
                kind, content = connection.recv()
                if kind == "answer":
                    return content
                if kind == "failed":
                    raise WorkerError(content)
                if told is not None:
                    seconds = told(content)
            raise TookTooLongError(f"took longer than {seconds:.0f} s")
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code = self._process.exitcode
            self.stop()
            raise WorkerError(f"the process ended with code {code}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, whatever it does."""
        # Taken first: the thread that waits for an answer stops the worker, too, when it dies.
        connection, self._connection = self._connection, None
        if connection is not None:
            self._process.kill()
            self._process.join()
            with contextlib.suppress(OSError):
                connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(other, self._start, *self._arguments)
            )
            self._process.start()
            # The only other end is the process's, so that its death shows here.
            other.close()
        return self._connection


def _serve(connection: Connection, start: Callable[..., Answer], *arguments: Any) -> None:
    """The process: an answer to each request that arrives, until the other end is gone."""
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = start(*arguments)

    def tell(content: Any) -> None:
        connection.send(("told", content))

    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            message = ("answer", answer(request, tell))
        except Exception as error:
            message = ("failed", first_line(error))
        connection.send(message)
