"""Settings are tried in a process of their own: some end it.

A compiler that fails an assertion takes its process with it, and a kernel that fails can leave the
device unusable for its process. The settings at fault are then left out, and the rest goes on in
another process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from bench.measuring.worker import Answer, Worker, WorkerError
from bench.tune.choice import choose_settings, new_row, to_try
from bench.tune.grid import Gpu
from bench.tune.passes import Job, measure
from bench.tune.search import Extent
from circle_kernels.backends.triton.settings import Settings

# Seconds for one of the settings, which may compile a dozen kernels, and for what comes between: a
# process starts, and all that run are timed.
_PATIENCE = 300.0
_PATIENCE_OTHERWISE = 600.0


class NoTimeLeftError(Exception):
    """The deadline came before a choice."""


Choice = tuple[Settings | None, dict[str, Any]]


def patience_with(settings: Settings | None) -> float:
    """Seconds to wait while these are tried, or what comes between."""
    return _PATIENCE_OTHERWISE if settings is None else _PATIENCE


class Chooser:
    """Chooses settings in another process; a context manager."""

    def __init__(
        self,
        gpu: Gpu,
        extent: Extent,
        choose: Callable[..., Choice] = choose_settings,
        patience: Callable[[Settings | None], float] = patience_with,
        deadline: float = math.inf,
    ) -> None:
        """``deadline`` is in seconds of :func:`time.monotonic`."""
        self._gpu, self._extent = gpu, extent
        self._patience, self._deadline = patience, deadline
        self._worker = Worker(_start, gpu, extent, choose)

    def __enter__(self) -> Chooser:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.stop()

    def choose(
        self,
        job: Job,
        tried: Callable[[], None],
        known: Mapping[Settings, str] = MappingProxyType({}),
    ) -> Choice:
        """As :func:`choose_settings`; ``tried`` is called for each of a job's settings.

        Where what failed is not one of the settings, the row says so under ``"failed"``. ``known``
        are settings that are broken, and why.

        Raises:
            NoTimeLeftError: the deadline has come.
        """
        broken = dict(known)
        done: set[Settings] = set()
        while True:
            trying: Settings | None = None

            def told(settings: Settings | None) -> float:
                nonlocal trying
                trying = settings
                if settings is not None and settings not in done:
                    done.add(settings)
                    tried()
                return self._seconds(settings)

            try:
                return self._worker.ask((job, broken), self._seconds(None), told)
            except WorkerError as error:
                if time.monotonic() >= self._deadline:
                    raise NoTimeLeftError from error
                if trying is None or trying in broken:
                    row = new_row(job, to_try(job, self._gpu, self._extent)[0])
                    return None, {**row, "failed": str(error)}
                broken[trying] = f"failed: {error}"

    def _seconds(self, settings: Settings | None) -> float:
        return max(0.0, min(self._patience(settings), self._deadline - time.monotonic()))


def _start(gpu: Gpu, extent: Extent, choose: Callable[..., Choice]) -> Answer:
    """In the process: a choice for each job."""

    def answer(
        request: tuple[Job, Mapping[Settings, str]], tell: Callable[[Settings | None], None]
    ) -> Choice:
        job, broken = request
        return choose(job, gpu, extent, broken, tell, measure)

    return answer
