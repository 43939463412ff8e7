"""The smoke stage: paths of the kernels beside float64, on backends that stand in for a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from bench.gpu.smoke import EACH_ONE, USUAL, PathTask, kernel_names, smoke_tasks
from bench.gpu.stages import TaskStage
from bench.gpu.tables import gpu_tables
from bench.measuring.sweep import BuiltFunctions
from circle_kernels.backends import tiled
from tests.bench.gpu.gpu_tasks import FAR_AWAY
from tests.support.targets import INTERPRETED


def find(variant: str, dtype: str, backend: str = "tiled") -> PathTask:
    (task,) = (
        each
        for each in smoke_tasks("cpu", backend)
        if each.variants == (variant,) and each.case.dtype == dtype
    )
    return task


def test_paths_differ_and_those_of_usual_limits_come_first() -> None:
    tasks = smoke_tasks("cpu")
    keys = [(task.variants, task.case) for task in tasks]
    assert len(keys) == len(set(keys))
    assert {task.case.dtype for task in tasks} == {"bfloat16", "float16", "float32"}
    usual = [USUAL in task.variants[0] for task in tasks]
    assert usual == sorted(usual, reverse=True)


@pytest.mark.skipif(INTERPRETED, reason="runs in the main lane")
def test_whole_stage_on_a_stand_in_for_the_device(tmp_path: Path) -> None:
    tasks = smoke_tasks("cpu", "tiled")
    stage = TaskStage(tasks, "cpu", 2, {"kernels": ["sum_rows_kernel"]})
    results = stage.run(tmp_path / "smoke.json", FAR_AWAY)
    assert len(results.rows) == len(tasks)
    assert {row["status"] for row in results.rows} == {"ok"}
    table = next(table for table in gpu_tables(results) if table.name == "gpu-smoke")
    assert len(table.rows) == len(tasks)
    # The stand-in launches nothing.
    assert table.notes == ["Launched by none: sum_rows_kernel."]


def test_wrong_result_is_seen_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiled.forward

    def wrong(problem):
        lse_pos, lse_neg, saved = forward(problem)
        lse_neg[-1] *= 1.01
        return lse_pos, lse_neg, saved

    monkeypatch.setattr(tiled, "forward", wrong)
    (row,) = find(f"references, {USUAL}", "float32").run(BuiltFunctions())
    assert row["status"].startswith("wrong: lse_neg by 0.0")


def test_missing_empty_set_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows have no positive, and their sum is minus infinity; JSON has no infinite error."""
    forward = tiled.forward
    monkeypatch.setattr(
        tiled, "forward", lambda problem: (forward(problem)[1].clone(), *forward(problem)[1:])
    )
    (row,) = find(f"self, {USUAL}", "float32").run(BuiltFunctions())
    assert row["status"].startswith("wrong: lse_pos by inf")
    assert row["errors"]["lse_pos"] is None


@pytest.mark.backends
@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter lane")
def test_every_path_is_right_and_together_they_launch_every_kernel() -> None:
    torch.manual_seed(0)
    launched: set[str] = set()
    tasks = [task for task in smoke_tasks("cpu") if task.precision == "highest"]
    # What half types have of their own is the unit of gradients.
    dtypes = {"float32": (USUAL, EACH_ONE), "float16": (USUAL,), "bfloat16": ()}
    for task in tasks:
        own_limits = task.variants[0].startswith("self") and len(task.limits) == 1
        if own_limits or any(each in task.variants[0] for each in dtypes[task.case.dtype]):
            (row,) = task.run(BuiltFunctions())
            assert row["status"] == "ok", row
            launched |= set(row["launched"])
    assert launched == set(kernel_names())
