"""Stages of ``python -m bench gpu``: cut and taken up again, with tasks and tools that fail."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3")

from bench import __main__ as cli
from bench.gpu import command as gpu
from bench.gpu import stages as gpu_stages
from bench.gpu.device_tests import BAD_OUTCOMES
from bench.gpu.sanitizer import sanitize
from bench.gpu.stages import STAGES, TaskStage
from bench.gpu.tasks import NO_TIME_LEFT, ProfileTask, Rows, Task
from bench.measuring.cases import Case
from bench.reporting import results as gpu_results
from bench.reporting.results import load
from tests.bench.gpu.gpu_tasks import FAR_AWAY, TINY, PatientTask, statuses


@dataclass(frozen=True)
class Counted(PatientTask):
    """Writes a line each time that it runs."""

    log: str = ""
    dies: bool = False

    @property
    def expected_seconds(self) -> float:
        return 0.0

    def run(self, built: object) -> Rows:
        with open(self.log, "a") as log:
            log.write(f"{self.variants[0]}\n")
        if self.dies:
            os._exit(7)
        return self.rows_without_result("ok")


def counted(log: Path, *names: str, dies: str = "") -> list[Task]:
    return [
        Counted("smoke", TINY, (name,), seconds=0.0, log=str(log), dies=name == dies)
        for name in names
    ]


def ran(log: Path) -> list[str]:
    return sorted(log.read_text().split()) if log.exists() else []


def test_stage_that_is_cut_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, log = tmp_path / "smoke.json", tmp_path / "log"
    stage = TaskStage(counted(log, "a", "b", "c"), "cpu")
    whole = gpu_stages.run_tasks

    def cut_short(tasks, deadline, processes):
        with contextlib.closing(whole(tasks, deadline, processes)) as running:
            yield next(running)
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_stages, "run_tasks", cut_short)
    with pytest.raises(KeyboardInterrupt):
        stage.run(path, FAR_AWAY * 2)
    assert statuses(load(path).rows) == {"a": "ok"}
    monkeypatch.undo()
    assert statuses(stage.run(path, FAR_AWAY * 2).rows) == dict.fromkeys("abc", "ok")
    # The first was not run again; the second may have been under way.
    assert ran(log).count("a") == 1
    assert statuses(load(path).rows) == dict.fromkeys("abc", "ok")
    assert len(load(path).rows) == 3


def test_what_no_time_was_left_for_is_run_by_the_next_call(tmp_path: Path) -> None:
    path, log = tmp_path / "smoke.json", tmp_path / "log"
    stage = TaskStage(counted(log, "a", "b"), "cpu", processes=2)
    assert statuses(stage.run(path, -1.0).rows) == dict.fromkeys("ab", NO_TIME_LEFT)
    assert ran(log) == []
    assert statuses(stage.run(path, FAR_AWAY * 2).rows) == dict.fromkeys("ab", "ok")
    assert ran(log) == ["a", "b"]


def test_results_of_other_code_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, log = tmp_path / "smoke.json", tmp_path / "log"
    stage = TaskStage(counted(log, "a"), "cpu")
    stage.run(path, FAR_AWAY * 2)
    monkeypatch.setattr(gpu_results, "describe_git", lambda folder: {"commit": "another"})
    stage.run(path, FAR_AWAY * 2)
    assert ran(log) == ["a", "a"]
    assert "is of other code, versions or device" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 3])
def test_path_that_crashes_takes_no_other_along(tmp_path: Path, processes: int) -> None:
    log = tmp_path / "log"
    tasks = counted(log, *"abcdef", dies="b")
    found = statuses(TaskStage(tasks, "cpu", processes).run(tmp_path / "x.json", FAR_AWAY * 2).rows)
    assert found.pop("b") == "failed: the process ended with code 7"
    assert found == dict.fromkeys("acdef", "ok")
    assert ran(log) == list("abcdef")


def test_profile_lists_what_a_step_runs(tmp_path: Path) -> None:
    (row,) = ProfileTask("profile", Case(32, 8), ("tiled",)).run(None)
    assert row["status"] == "ok"
    counts = {launch["name"]: launch["count"] for launch in row["launches"]}
    assert counts["aten::mm"] >= 1
    times = [launch["microseconds"] for launch in row["launches"]]
    assert times == sorted(times, reverse=True)


def fake_sanitizer(folder: Path, code: int) -> None:
    """Runs what it is to watch, and then says how it went."""
    folder.mkdir(exist_ok=True)
    path = folder / "compute-sanitizer"
    path.write_text(
        '#!/bin/sh\n[ "$1 $3 $4" = "--tool --error-exitcode 99" ] || exit 3\n'
        'shift 4\n"$@" || exit\n'
        f"echo ========= COMPUTE-SANITIZER\necho ========= Invalid __global__ read\nexit {code}\n"
    )
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [(0, "passed", ""), (99, "failed", "Invalid __global__ read"), (1, "error", "code 1")],
)
def test_sanitizer_watches_small_problems(
    code: int, outcome: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sanitizer(tmp_path, code)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (row,) = sanitize("memcheck", FAR_AWAY, "cpu", "tiled")
    assert (row["test"], row["outcome"]) == ("compute-sanitizer memcheck", outcome)
    assert said in row.get("message", "")


def test_sanitizer_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (row,) = sanitize("racecheck", FAR_AWAY, "cuda")
    assert row["outcome"] == "skipped"
    assert "neither on PATH" in row["message"]
    assert row["outcome"] not in BAD_OUTCOMES


def test_sanitizer_without_time_is_left_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "compute-sanitizer").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'while 1: 0'\n"
    )
    (tmp_path / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = sanitize("racecheck", 1.0, "cuda")
    assert (row["outcome"], row["message"]) == ("not run", "no time left")


def test_stages_can_be_asked_for_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda *device: "Pretended")
    monkeypatch.setattr(
        gpu, "run_stages", lambda folder, stages, seconds: asked.append([*stages, seconds, folder])
    )
    assert cli.main(["gpu", "--stage", "smoke", "--out", str(tmp_path)]) == 0
    assert cli.main(["gpu", "--seconds", "7", "--out", str(tmp_path)]) == 0
    assert asked == [
        ["smoke", gpu.DEFAULT_SECONDS, tmp_path],
        [*("smoke", "tests", "measure", "compare", "tune"), 7.0, tmp_path],
    ]
    assert list(STAGES) == asked[1][:5]


def test_unknown_stage_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["gpu", "--stage", "smok"])
    assert re.search("invalid choice: 'smok'", capsys.readouterr().err)
