"""All stages of ``python -m bench gpu`` into one folder, on stand-ins for a device, twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", minversion="3.3")

from bench.gpu import command as gpu
from bench.gpu.smoke import smoke_tasks
from bench.gpu.stages import STAGES, TaskStage, TestStage
from bench.gpu.tasks import ProfileTask
from bench.gpu.tuning import Tuner
from bench.measuring.cases import Case
from bench.reporting.results import load
from circle_kernels.backends.triton.conditions import Hardware, assuming
from circle_kernels.backends.triton.settings_table import read_entries
from tests.bench.gpu.gpu_tasks import FAR_AWAY, TINY, PatientTask
from tests.bench.gpu.test_compare import small_tasks
from tests.bench.gpu.test_tuning import StandInChooser, search, tasks_that_fail
from tests.bench.tune.tuning import H100
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
TITLES = (
    "Bounds",
    "Paths of the kernels",
    "Tests on the device",
    "What a step launches",
    "Limits that plans go by",
    "Launch settings",
)


def stages(tests: Path, chooser: StandInChooser) -> dict[str, Any]:
    """Each with little to do."""
    measured = [
        PatientTask("time", TINY, ("tiled", "mm"), seconds=0.0),
        ProfileTask("profile", Case(32, 8), ("tiled",)),
    ]
    return {
        "smoke": lambda: TaskStage(smoke_tasks("cpu", "tiled")[:9], "cpu", 2),
        "tests": lambda: TestStage([str(tests)], "cpu", "tiled", 1),
        "measure": lambda: TaskStage(measured, "cpu"),
        "compare": lambda: TaskStage(small_tasks(Hardware("sm_90", 1))[:2], "cpu"),
        "tune": lambda: Tuner(search(), H100, lambda *asked: chooser, tasks_that_fail),
    }


def test_stages_are_made_for_the_device_that_is_there(own_table: None) -> None:
    """All but the comparison, whose own test has it."""
    with assuming(hardware=Hardware("sm_90", 132)):
        made = {name: STAGES[name]("cuda", False) for name in STAGES if name != "compare"}
        quick = STAGES["measure"]("cuda", True)
    # More tiles than multiprocessors.
    assert {task.case.rows for task in made["smoke"].tasks} == {200, 128 * 12 + 33}
    assert made["smoke"].processes > made["measure"].processes == 1
    assert made["tests"].selection == ("-m", "gpu", "tests")
    assert 0 < len(quick.tasks) < len(made["measure"].tasks)
    assert made["tune"].gpu == H100
    assert made["tune"].search.dtypes[0] == "bfloat16"


def test_all_stages_make_one_page_and_a_second_call_adds_nothing(
    tmp_path: Path, own_table: None
) -> None:
    ran = tmp_path / "ran"
    tests = tmp_path / "test_small.py"
    tests.write_text(f"def test_good():\n    open({str(ran)!r}, 'a').write('once')\n")
    folder, chooser = tmp_path / "new", StandInChooser()
    made = stages(tests, chooser)
    assert list(made) == list(STAGES)
    gpu.run_stages(folder, made, FAR_AWAY / 2)
    page = (folder / "gpu.md").read_text()
    for title in TITLES:
        assert f"\n{title}" in page, title
    assert [entry.kernel for entry in read_entries(folder / "tune.json")] == ["triangle", "weights"]
    found = {name: load(folder / f"{name}.json").rows for name in STAGES if name != "tune"}
    gpu.run_stages(folder, stages(tests, chooser), FAR_AWAY / 2)
    assert ran.read_text() == "once"
    assert len(chooser.asked) == 2
    assert {name: load(folder / f"{name}.json").rows for name in found} == found
