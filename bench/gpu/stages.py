"""The stages of ``python -m bench gpu``: what each runs, and what is kept between two calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device_tests import NOT_RUN, run_tests
from bench.gpu.measurements import most_processes, run_tasks
from bench.gpu.record import Record
from bench.gpu.tasks import Task, all_tasks, quick_tasks
from bench.measuring.data import describe_data
from bench.measuring.variants import GAMMA, M
from bench.reporting.results import Results

# Of the time that tests have, for what is watched by compute-sanitizer after them.
_SHARE_OF_SANITIZER = 0.2


@dataclass(frozen=True)
class TaskStage:
    """Tasks, each of them a step: what has a row is not run again."""

    tasks: Sequence[Task]
    device: str
    processes: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict)  # that go into the file

    def run(self, path: Path, seconds: float) -> Results:
        """Until all tasks have rows, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        record = Record(path, self.device, {**_settings(), **self.notes})
        left = [task for task in self.tasks if not record.is_done(task)]
        record.save()
        for rows in run_tasks(left, deadline, self.processes):
            record.add(rows)
        return record.results


@dataclass(frozen=True)
class TestStage:
    """The tests that need a device, then two small problems under compute-sanitizer."""

    __test__ = False  # none of pytest's

    selection: Sequence[str]  # pytest's arguments
    device: str
    backend: str = "triton"
    processes: int | None = None

    def run(self, path: Path, seconds: float) -> Results:
        """Until every test has ended, or so many seconds are over."""
        from bench.gpu.sanitizer import TOOLS, sanitize, sanitizer_name

        deadline = time.monotonic() + seconds
        record = Record(path, self.device, _settings())
        done = [row["test"] for row in record.results.rows if row["outcome"] != NOT_RUN]
        for rows in run_tests(
            (1 - _SHARE_OF_SANITIZER) * seconds, self.selection, self.processes, done
        ):
            record.add(rows)
        for tool in TOOLS:
            if sanitizer_name(tool) not in done:
                left = deadline - time.monotonic()
                record.add(sanitize(tool, left, self.device, self.backend))
        return record.results


def _settings() -> dict[str, Any]:
    return {
        "m": M,
        "gamma": GAMMA,
        "reduction": "mean",
        **describe_data(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def smoke_stage(device: str, quick: bool) -> TaskStage:
    """Every path beside float64."""
    from bench.gpu.smoke import kernel_names, smoke_tasks

    return TaskStage(smoke_tasks(device), device, most_processes(16), {"kernels": kernel_names()})


def tests_stage(device: str, quick: bool) -> TestStage:
    """What pytest marks as ``gpu``."""
    return TestStage(("-m", "gpu", "tests"), device)


def measure_stage(device: str, quick: bool) -> TaskStage:
    """Times and memory beside peers, and what steps launch."""
    return TaskStage(quick_tasks(device) if quick else all_tasks(device), device)


def compare_stage(device: str, quick: bool) -> TaskStage:
    """Every limit of plans, at other values."""
    from bench.gpu.compare import compare_tasks
    from circle_kernels.backends.triton.conditions import conditions_on

    hardware = conditions_on(torch.device(device)).hardware
    tasks, without = compare_tasks(device, hardware)
    return TaskStage(tasks, device, notes={"not_compared": without})


def tune_stage(device: str, quick: bool) -> Any:
    """Launch settings."""
    from bench.gpu.tuning import tuner

    return tuner(device)


# In the order in which they are run: each is worth more if those before it have gone well.
STAGES: dict[str, Callable[[str, bool], Any]] = {
    "smoke": smoke_stage,
    "tests": tests_stage,
    "measure": measure_stage,
    "compare": compare_stage,
    "tune": tune_stage,
}
