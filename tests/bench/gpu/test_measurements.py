"""Tasks of ``python -m bench gpu`` in their own process, shown without a device."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import torch

from bench.gpu.measurements import run_tasks
from bench.gpu.tasks import NO_TIME_LEFT, Task
from bench.measuring import sweep
from bench.measuring.timing import CapturedStep
from bench.measuring.variants import VARIANTS, Work
from tests.bench.gpu.gpu_tasks import FAR_AWAY, TINY, PatientTask, statuses


def test_worker_measures_and_what_fails_is_a_row() -> None:
    tasks = [
        PatientTask("time", TINY, ("tiled", "mm"), seconds=0.1),
        PatientTask("graph", TINY, ("tiled",), seconds=0.1),  # there are no graphs without a device
    ]
    timed, captured = run_tasks(tasks, time.monotonic() + FAR_AWAY)
    assert statuses(timed) == {"tiled": "ok", "mm": "ok"}
    assert all(row["kind"] == "time" for row in timed)
    assert len(timed[0]["forward_backward"]) == len(timed[1]["forward"]) >= 5
    assert captured[0]["kind"] == "graph"
    assert captured[0]["status"].startswith("failed: ")


class _Replay:
    """What a CUDA graph does, without one."""

    def __init__(self, work: Work) -> None:
        self.work, self.replays = work, 0

    def replay(self) -> None:
        self.replays += 1
        self.work.step()


def test_captured_steps_are_timed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sweep, "capture", lambda work: CapturedStep(work, _Replay(work), torch.zeros(()))
    )
    ours, product = Task("graph", TINY, ("tiled", "mm"), seconds=0.1).run(sweep.BuiltFunctions())
    assert ours["kind"] == product["kind"] == "graph"
    assert len(ours["forward_backward"]) == len(product["forward"]) >= 5
    assert product["forward_backward"] == []


def test_one_replay_is_the_whole_step() -> None:
    work = VARIANTS["tiled"].work(TINY)
    graph = _Replay(work)
    step = CapturedStep(work, graph, torch.zeros(()))
    step.reset()
    step.backward(step.forward())
    assert graph.replays == 1


def test_tasks_without_time_are_listed_and_shorter_ones_still_run() -> None:
    tasks = [
        Task("time", TINY, ("tiled", "compile"), seconds=2 * FAR_AWAY),
        PatientTask("time", TINY, ("mm",), seconds=0.1),
    ]
    long, short = run_tasks(tasks, time.monotonic() + FAR_AWAY)
    assert statuses(long) == {"tiled": NO_TIME_LEFT, "compile": NO_TIME_LEFT}
    assert statuses(short) == {"mm": "ok"}


class _Hangs(Task):
    """Longer than it says."""

    def run(self, built: object) -> list[dict]:
        time.sleep(FAR_AWAY)
        return []

    @property
    def expected_seconds(self) -> float:
        return 0.0

    @property
    def longest_seconds(self) -> float:
        return 1.0


class _Dies(PatientTask):
    """Takes its process with it, as a failed assertion on a device does."""

    def run(self, built: object) -> list[dict]:
        os._exit(7)


class _HangsForEver(_Hangs):
    """Only the deadline ends it."""

    @property
    def longest_seconds(self) -> float:
        return FAR_AWAY


def test_worker_that_dies_or_hangs_is_replaced() -> None:
    tasks = [
        _Dies("time", TINY, ("mm",), seconds=0.1),
        _Hangs("time", TINY, ("mm",)),
        PatientTask("time", TINY, ("mm",), seconds=0.1),
    ]
    died, hung, measured = run_tasks(tasks, time.monotonic() + FAR_AWAY)
    assert statuses(died) == {"mm": "failed: the process ended with code 7"}
    assert statuses(hung) == {"mm": "failed: took longer than 1 s"}
    assert statuses(measured) == {"mm": "ok"}


def test_deadline_stops_a_task_that_hangs() -> None:
    (rows,) = run_tasks([_HangsForEver("time", TINY, ("mm",))], time.monotonic() + 1)
    assert statuses(rows) == {"mm": NO_TIME_LEFT}


def test_whoever_wants_no_more_rows_leaves_no_process_behind() -> None:
    tasks = [
        PatientTask("time", TINY, ("mm",), seconds=0.1),
        *(_HangsForEver("time", TINY, ("mm",)) for _ in range(3)),
    ]
    before = set(multiprocessing.active_children())
    rows = run_tasks(tasks, time.monotonic() + FAR_AWAY, processes=2)
    assert statuses(next(rows)) == {"mm": "ok"}
    rows.close()
    assert set(multiprocessing.active_children()) <= before
