"""The compare stage: limits at half, double and 0, where plans become others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3")

from bench.gpu.compare import AT_0, CompareTask, Size, compare_tasks
from bench.gpu.stages import STAGES, TaskStage
from bench.gpu.tables import gpu_tables
from bench.measuring.timing import Effort
from circle_kernels.backends.triton.conditions import Hardware, Limits, assuming
from tests.bench.gpu.gpu_tasks import FAR_AWAY
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
SMALL = [Size(rows, 16) for rows in (256, 384, 512, 640, 768, 1280)]
SHORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3, sample_seconds=0.0)


def small_tasks(hardware: Hardware) -> list[CompareTask]:
    tasks, _ = compare_tasks("cpu", hardware, SMALL, dtype="float32", backend="tiled", effort=SHORT)
    return tasks


def test_every_limit_has_a_problem_that_it_matters_for_or_is_named() -> None:
    with assuming(hardware=Hardware("sm_90", 132)):
        stage = STAGES["compare"]("cuda", False)
    tasks, without = stage.tasks, stage.notes["not_compared"]
    names = {field.name for field in dataclasses.fields(Limits)}
    assert {task.limit for task in tasks} | set(without) == names
    assert len(without) <= 1
    keys = [(task.case, variant) for task in tasks for variant in task.variants]
    assert len(keys) == len(set(keys))
    usual = dataclasses.asdict(Limits())
    for task in tasks:
        value, *others = task.values
        assert value == usual[task.limit]
        assert others
        assert {*others} <= {value // 2, 2 * value, *([0] if task.limit in AT_0 else [])}
    assert {task.limit for task in tasks if 0 in task.values} == set(AT_0)
    # The first tasks show each limit once.
    assert len({task.limit for task in tasks[: len(names) - len(without)]}) == len(names) - len(
        without
    )


def test_values_take_turns_and_ratios_are_shown(tmp_path: Path) -> None:
    tasks = small_tasks(Hardware("sm_90", 1))
    assert tasks
    results = TaskStage(tasks, "cpu").run(tmp_path / "compare.json", FAR_AWAY)
    assert {row["status"] for row in results.rows} == {"ok"}
    assert all(len(row["forward"]) == len(row["forward_backward"]) == 3 for row in results.rows)
    table = next(table for table in gpu_tables(results) if table.name == "gpu-limits")
    assert len(table.rows) == sum(len(task.values) - 1 for task in tasks)
    for row in table.rows:
        limit, usual, *_, value, forward, step = row
        assert int(value) in (int(usual) // 2, 2 * int(usual), 0)
        assert limit in {field.name for field in dataclasses.fields(Limits)}
        assert "(" in forward
        assert "(" in step
