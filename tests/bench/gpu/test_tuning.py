"""The tune stage: what is tried and in which order, on a stand-in for a device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from triton.runtime import JITFunction

from bench.gpu.tasks import Rows, Task
from bench.gpu.tuning import CompileTask, Tuner, compile_tasks, kernels_by_value
from bench.tune import choice as tune_choice
from bench.tune import passes as tune_passes
from bench.tune.chooser import Choice, NoTimeLeftError
from bench.tune.command import jobs_of
from bench.tune.grid import Gpu, problem_sizes
from bench.tune.passes import Job, Pass
from bench.tune.search import Extent, Search
from circle_kernels.backends.triton.conditions import Hardware
from circle_kernels.backends.triton.settings import Settings, listed_settings
from circle_kernels.backends.triton.settings_table import KERNELS, read_entries
from tests.bench.gpu.gpu_tasks import FAR_AWAY
from tests.bench.tune.tuning import H100, no_data
from tests.support.targets import INTERPRETED

NEAR = Extent(most=4)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")


def search(kernels: Sequence[str] = ("triangle", "weights")) -> Search:
    return Search(kernels, ["bfloat16"], [512], "cpu", NEAR)


@not_interpreted
def test_kernels_of_the_main_problem_come_first_and_none_is_missing() -> None:
    names = kernels_by_value(Hardware("sm_90", 132))
    assert sorted(names) == sorted(KERNELS)
    assert names.index("weights") < names.index("small_rectangle")


def test_a_few_hundred_settings_the_nearest_first() -> None:
    jobs = jobs_of(Search(list(KERNELS), ["bfloat16", "float32"], [512], "cuda"), H100)
    tasks = compile_tasks(jobs, H100)
    assert 100 < len(tasks) < 500
    current, family, *others = tune_choice.to_try(jobs[0], H100, NEAR)
    assert family == listed_settings(jobs[0].kernel, "sm_86", 2, 512) != current
    assert len(others) == 2
    distances = [tune_choice._distance(each, current) for each in others]
    assert distances == sorted(distances)
    assert distances[-1] <= 1
    # All of bfloat16 before any of float32.
    assert [job.dtype for job in jobs] == sorted((job.dtype for job in jobs), key=str)


@not_interpreted
def test_compiling_runs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.offline.pretended import DEVICES, pretend_device

    monkeypatch.setattr(tune_passes, "make_data", no_data)
    warmed = []
    monkeypatch.setattr(
        JITFunction, "warmup", lambda kernel, **given: warmed.append((kernel.__name__, given))
    )
    job = Job("triangle", "sm_90", torch.bfloat16, 512, "cuda")
    with pretend_device(DEVICES["sm_90"]) as launches:
        (size,) = problem_sizes("triangle", 132)
        Pass(job, size).compile(Settings(64, 64, 32, 4, 5))
    assert launches == []
    ((_, given),) = warmed
    assert (given["num_warps"], given["num_stages"], given["BLOCK_ROWS"]) == (4, 5, 64)
    assert len(given["grid"]) == 1


@dataclasses.dataclass(frozen=True)
class Compiles(CompileTask):
    """Fails, with the current settings."""

    def run(self, built: object) -> Rows:
        if self.settings.max_registers is None:
            raise RuntimeError("out of resource: shared memory\nand more")
        return self.rows_without_result("ok")

    @property
    def longest_seconds(self) -> float:
        return FAR_AWAY


def tasks_that_fail(jobs: Sequence[Job], gpu: Gpu, extent: Extent) -> list[Task]:
    return [Compiles(**vars(task)) for task in compile_tasks(jobs, gpu, extent)]


class StandInChooser:
    """Takes the last of a job's settings, or has no time for some kernels."""

    def __init__(self, late: Sequence[str] = ()) -> None:
        self.late = late
        self.asked: list[tuple[str, Mapping[Settings, str]]] = []

    def __enter__(self) -> StandInChooser:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def choose(self, job: Job, tried: Callable[[], None], known: Mapping[Settings, str]) -> Choice:
        self.asked.append((job.kernel, known))
        if job.kernel in self.late:
            raise NoTimeLeftError
        *_, last = tune_choice.to_try(job, H100, NEAR)
        row = tune_choice.new_row(job, last)
        return last, {**row, "chosen": tune_choice.text_of(last), "ratio": 0.5, "ratios": {}}


def tune(path: Path, chooser: Any, seconds: float = FAR_AWAY) -> None:
    Tuner(search(), H100, lambda *asked: chooser, tasks_that_fail).run(path, seconds)


def test_cut_stage_goes_on_and_its_file_is_one_that_the_package_reads(
    tmp_path: Path, own_table: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tune.json"
    first = StandInChooser(late=["weights"])
    tune(path, first)
    assert [kernel for kernel, _ in first.asked] == ["triangle", "weights"]
    assert [entry.kernel for entry in read_entries(path)] == ["triangle"]
    assert "1 are left for another call, first weights bfloat16 D=512" in capsys.readouterr().out
    # What did not compile is not tried again.
    assert set(first.asked[0][1].values()) <= {
        "failed: RuntimeError: out of resource: shared memory"
    }
    assert any(known for _, known in first.asked)
    then = StandInChooser()
    tune(path, then)
    assert [kernel for kernel, _ in then.asked] == ["weights"]
    assert [entry.kernel for entry in read_entries(path)] == ["triangle", "weights"]
    assert len(json.loads(path.read_text())["measured"]["rows"]) == 2
    last = StandInChooser()
    tune(path, last)
    assert last.asked == []


def test_without_time_nothing_is_begun(tmp_path: Path, own_table: None) -> None:
    chooser = StandInChooser()
    tune(tmp_path / "tune.json", chooser, seconds=1.0)
    assert chooser.asked == []
