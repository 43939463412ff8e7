"""Code in a process of its own, for what could end or hang the process that runs it.

A server that has imported torch forks the processes, which takes milliseconds where importing takes
a second. It was started before any test ran: environment variables are to be set in the process.
"""

from __future__ import annotations

import functools
import importlib
import math
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

CONTEXT = multiprocessing.get_context("forkserver")
# What takes long to import; fake tensors import the compiler.
CONTEXT.set_forkserver_preload(
    ["circle_kernels", "pytest", "torch._dynamo", "pytorch_metric_learning.losses"]
)

# Of a processor, that one answer may take: what takes more runs for ever. It is counted in the
# process, so that a busy machine changes nothing. Only one that waits for ever takes the silence.
_SECONDS = 20
_SILENCE = 500.0


@dataclass(frozen=True)
class Ended:
    """How a process ended that did not come to its end."""

    how: str


def answers(function: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """What ``function(send, *arguments)`` sends from its process, and an ``Ended`` where that died.

    The function has to be found in its module by its name; what it sends must not be tensors.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while receiver.poll(_SILENCE):
            yield receiver.recv()
        yield Ended(f"no answer for {_SILENCE:g} s")
    except EOFError:
        process.join()
        if process.exitcode != 0:
            code = process.exitcode or 0
            yield Ended(signal.Signals(-code).name if code < 0 else f"exit code {code}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _run(sender: Connection, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)

    def send(answer: Any) -> None:
        sender.send(answer)
        _allow_seconds()

    _allow_seconds()
    function(send, *arguments)


def _allow_seconds() -> None:
    spent = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + _SECONDS, resource.RLIM_INFINITY))


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test function of a module, run in a process of its own with its parameters."""

    @functools.wraps(test)
    def wrapper(**parameters: Any) -> None:
        for answer in answers(_run_test, test.__module__, test.__name__, parameters):
            pytest.fail(answer.how if isinstance(answer, Ended) else answer, pytrace=False)

    return wrapper


def _run_test(send: Callable[[Any], None], module: str, name: str, parameters: dict) -> None:
    test = getattr(importlib.import_module(module), name).__wrapped__
    try:
        test(**parameters)
    except BaseException:
        send(traceback.format_exc())
