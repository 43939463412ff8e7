"""The tune stage: settings compiled in parallel, then timed, the most valuable kernels first."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measurements import most_processes, run_tasks
from bench.gpu.tasks import NO_TIME_LEFT, Rows, Task
from bench.measuring.cases import Case
from bench.measuring.sweep import BuiltFunctions
from bench.offline.pretended import plan_launches
from bench.reporting.results import Results, load, same_source, start_results
from bench.tune.choice import text_of, to_try
from bench.tune.chooser import Chooser, NoTimeLeftError
from bench.tune.command import describe_search, find_gpu, jobs_of, tune_jobs
from bench.tune.grid import Gpu, problem_sizes
from bench.tune.passes import Job, Pass
from bench.tune.search import Extent, Search
from circle_kernels import CircleFormula
from circle_kernels.backends.triton.conditions import Hardware, assuming, conditions_on
from circle_kernels.backends.triton.settings import Settings
from circle_kernels.backends.triton.settings_table import KERNELS, Table

# Of a kernel, dtype and depth: with them a stage tries a few hundred.
_NEAREST = Extent(most=20)
_DEPTHS = (512,)
_DTYPES = ("bfloat16", "float32")
# Of the time, at most, for compiling: what is not compiled by then is when it is tried.
_SHARE_OF_COMPILING = 0.5
# A job is not begun with less time left.
_LEAST_SECONDS = 20.0
# Problems in the order of what they are worth; a kernel is worth what the first that takes it is.
_PROBLEMS: tuple[dict[str, Any], ...] = (
    {"num_rows": 16_384, "depth": 512},
    {"num_rows": 512, "depth": 256},
    {"num_rows": 8_192, "depth": 512, "num_references": 8_192},
    {"num_rows": 4_096, "depth": 512, "num_references": 2**20, "classes": True},
    {"num_rows": 2_048, "depth": 512},
)


def kernels_by_value(hardware: Hardware) -> list[str]:
    """The names of the settings table, those that matter most first."""
    names = list(KERNELS)
    # What no entry has: a number of stages of each kernel's own, by which launches tell it.
    table: Table = {
        (name, hardware.architecture, itemsize): ((1, Settings(32, 32, 32, 2, number)),)
        for number, name in enumerate(names)
        for itemsize in (2, 4)
    }
    found: list[str] = []
    with assuming(table=table):
        for problem in _PROBLEMS:
            launches = plan_launches(
                _Pretended(hardware), dtype=torch.bfloat16, formula=CircleFormula(), **problem
            )
            tiled = [launch.settings for launch in launches if launch.settings is not None]
            found += [names[settings.num_stages] for settings in tiled]
    return list(dict.fromkeys([*found, *names]))


@dataclass(frozen=True)
class _Pretended:
    """What planning asks of a device."""

    hardware: Hardware


@dataclass(frozen=True)
class CompileTask(Task):
    """One of a job's settings, compiled and kept on disk; no kernel runs."""

    job: Job | None = None
    settings: Settings | None = None
    multiprocessors: int = 1

    @property
    def expected_seconds(self) -> float:
        return 5.0

    @property
    def longest_seconds(self) -> float:
        """Of large tiles, beside others, after a process has started."""
        return 120.0

    def run(self, built: BuiltFunctions) -> Rows:
        """A row without more than its status."""
        for one in _passes(self.job, self.multiprocessors):
            one.compile(self.settings)
        return self.rows_without_result("ok")


# One job after the other is compiled.
@functools.lru_cache(maxsize=1)
def _passes(job: Job, multiprocessors: int) -> list[Pass]:
    return [Pass(job, size) for size in problem_sizes(job.kernel, multiprocessors)]


def compile_tasks(jobs: Sequence[Job], gpu: Gpu, extent: Extent = _NEAREST) -> list[CompileTask]:
    """All settings of all jobs."""
    return [
        CompileTask(
            "compile",
            Case(0, job.depth, "random", str(job.dtype).removeprefix("torch."), job.device),
            (f"{job.kernel}, {text_of(settings)}",),
            job=job,
            settings=settings,
            multiprocessors=gpu.multiprocessors,
        )
        for job in jobs
        for settings in to_try(job, gpu, extent)
    ]


@dataclass(frozen=True)
class Tuner:
    """What a tune stage runs; the parts that need a device can be others.

    Args:
        search: what is tried.
        gpu: the device.
        chooser: makes what chooses, of the device, the extent and a deadline.
        tasks: what is compiled first, of the jobs that are left.
    """

    search: Search
    gpu: Gpu
    chooser: Callable[[Gpu, Extent, float], Chooser] = lambda gpu, extent, deadline: Chooser(
        gpu, extent, deadline=deadline
    )
    tasks: Callable[[Sequence[Job], Gpu, Extent], Sequence[Task]] = compile_tasks

    def run(self, path: Path, seconds: float) -> Results:
        """Into a file that the package takes, as settings come; a later call goes on with it."""
        begin = time.monotonic()
        results = start_results("tune", self.search.device, describe_search(self.search, self.gpu))
        before = load(path, within="measured") if path.exists() else None
        if before is not None and same_source(before, results):
            results = before
        done = {(row["kernel"], row["dtype"], row["depth"]) for row in results.rows}
        jobs = [
            job
            for job in jobs_of(self.search, self.gpu)
            if (job.kernel, str(job.dtype).removeprefix("torch."), job.depth) not in done
        ]
        broken = self._compile(jobs, begin + _SHARE_OF_COMPILING * seconds)
        with self.chooser(self.gpu, self.search.extent, begin + seconds) as chooser:
            for number, job in enumerate(jobs):
                try:
                    if begin + seconds - time.monotonic() < _LEAST_SECONDS:
                        raise NoTimeLeftError
                    choose = functools.partial(chooser.choose, known=broken.get(job, {}))
                    tune_jobs([job], self.gpu, path, results, choose)
                except NoTimeLeftError:
                    print(f"{len(jobs) - number} are left for another call, first {job}")
                    break
        return results

    def _compile(self, jobs: Sequence[Job], deadline: float) -> dict[Job, dict[Settings, str]]:
        """Compile in several processes; what ends or hangs one is not tried again."""
        tasks = self.tasks(jobs, self.gpu, self.search.extent)
        of_row = {(task.variants[0], task.case.dtype, task.case.dim): task for task in tasks}
        broken: dict[Job, dict[Settings, str]] = {}
        for (row,) in run_tasks(tasks, deadline, most_processes(16)):
            task = of_row[row["variant"], row["dtype"], row["dim"]]
            if row["status"] not in ("ok", NO_TIME_LEFT):
                broken.setdefault(task.job, {})[task.settings] = row["status"]
        return broken


def tuner(device: str) -> Tuner:
    """What the stage runs on a device."""
    kernels = kernels_by_value(conditions_on(torch.device(device)).hardware)
    search = Search(kernels, _DTYPES, _DEPTHS, device, _NEAREST)
    return Tuner(search, find_gpu(search))
