"""A process of its own: what it answers, and what becomes of one that hangs, dies or fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from bench.measuring.worker import Answer, TookTooLongError, Worker, WorkerError

# No verdict depends on how long something takes.
FAR_AWAY = 1e6


def start(name: str) -> Answer:
    """Answers with its name, its process, and how many requests it has had."""
    answered = 0

    def answer(request: str, tell: Callable[[Any], None]) -> tuple[str, int, int]:
        nonlocal answered
        answered += 1
        tell(f"begins {request}")
        if request == "hangs":
            time.sleep(FAR_AWAY)
        if request == "dies":
            os._exit(7)
        if request == "fails":
            raise ValueError("not so\nand more")
        return name, os.getpid(), answered

    return answer


def ask(worker: Worker, request: str, then: float = FAR_AWAY) -> tuple[str, int, int]:
    told = []

    def tell(content: str) -> float:
        told.append(content)
        return then

    try:
        return worker.ask(request, FAR_AWAY, tell)
    finally:
        assert told == [f"begins {request}"]


def test_process_is_kept_until_there_is_no_answer() -> None:
    with Worker(start, "one") as worker:
        name, process, answered = ask(worker, "first")
        assert (name, answered) == ("one", 1)
        assert process != os.getpid()
        assert ask(worker, "second") == ("one", process, 2)
        with pytest.raises(WorkerError, match=r"^ValueError: not so$"):
            ask(worker, "fails")
        name, other, answered = ask(worker, "third")
        assert other != process
        assert answered == 1
        with pytest.raises(WorkerError, match=r"^the process ended with code 7$"):
            ask(worker, "dies")
        with pytest.raises(TookTooLongError, match=r"^took longer than 1 s$"):
            ask(worker, "hangs", then=1.0)
        worker.stop()
        worker.stop()


def test_what_is_told_needs_nobody_to_listen() -> None:
    with Worker(start, "one") as worker:
        assert worker.ask("first", FAR_AWAY)[2] == 1
