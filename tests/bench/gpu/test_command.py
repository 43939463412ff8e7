"""``python -m bench gpu``: a whole run, and what is made of its results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bench import __main__ as cli
from bench.gpu import command as gpu
from bench.gpu.bounds import bounds, read_figures
from bench.gpu.stages import TaskStage, TestStage
from bench.gpu.tables import gpu_tables, summary
from bench.gpu.tasks import CAPTURED, EVERY, LARGE, MAIN, NO_TIME_LEFT, SMALL, Task
from bench.measuring.cases import Case
from bench.reporting.errors import UserError
from bench.reporting.results import Results, load, slug, start_results
from tests.bench.gpu.gpu_tasks import FAR_AWAY, TINY, PatientTask, statuses


def time_row(case: tuple, variant: str, forward: float, whole: float | None = None) -> dict:
    rows, dim, regime, dtype = case
    row = {"kind": "time", "rows": rows, "dim": dim, "regime": regime, "dtype": dtype}
    row |= {"variant": variant, "status": "ok", "forward": [forward] * 5, "device": "cuda"}
    return {**row, "forward_backward": [] if whole is None else [whole] * 5}


def synthetic() -> Results:
    """A run in which two bounds are not held, and one case was not reached."""
    results = start_results("gpu", "cuda", {"seconds_spent": {"tests": 100, "measure": 200}})
    results.machine["gpu"] = "Pretended GPU"
    main = (*MAIN, "random", "bfloat16")
    results.rows = [
        {"kind": "test", "test": "tests/test_x.py::test_a", "outcome": "passed", "seconds": 1.0},
        {
            "kind": "test",
            "test": "tests/test_x.py::test_b",
            "outcome": "failed",
            "seconds": 1.0,
            "message": "AssertionError: wrong\nassert 1 == 2",
        },
        time_row(main, "triton", 0.0005, 0.0015),
        time_row(main, "eager", 0.01, 0.03),
        time_row(main, "compile", 0.001, 0.003),
        time_row(main, "mm", 0.0005),
    ]
    for name, whole in (("triton", 1e-5), ("eager", 4e-5)):
        row = time_row((*SMALL, "random", "bfloat16"), name, 1.0, whole)
        results.rows.append({**row, "kind": "graph"})
    gauge = {**time_row((*LARGE, "random", "bfloat16"), "triton", 1.0), "kind": "memory"}
    results.rows.append({**gauge, "peak_bytes": 65_536 * 512 * 2 + 50_000_000})
    task = Task("time", Case(*MAIN, "trained", "bfloat16", "cuda"), EVERY)
    results.rows += task.rows_without_result(NO_TIME_LEFT)
    return results


def test_bounds_are_held_to_what_was_measured() -> None:
    table = gpu_tables(synthetic())[0]
    cells = {(row[0], row[1]): row[2:] for row in table.rows}
    main = f"N={MAIN[0]} D={MAIN[1]} bfloat16 random"
    assert cells["forward / product", main] == ["at most 1.00", "1.00 (1.00-1.00)", "held"]
    assert cells["forward + backward / product", main][1:] == ["3.00 (3.00-3.00)", "**not held**"]
    assert cells["speed-up over torch.compile", main][1:] == ["2.00 (2.00-2.00)", "**not held**"]
    assert cells["speed-up over eager", main] == ["at least 10.0", "20.0 (20.0-20.0)", "held"]
    trained = main.replace("random", "trained")
    assert cells["forward / product", trained] == ["at most 1.00", "-", "not measured"]
    small = f"N={SMALL[0]} D={SMALL[1]} bfloat16 random"
    assert cells["captured step / captured eager", small] == [
        "at most 0.333",
        "0.250 (0.250-0.250)",
        "held",
    ]
    large = f"N={LARGE[0]} D={LARGE[1]} bfloat16 random"
    assert cells["peak MB above inputs and gradient", large] == ["-", "50.0 (50.0-50.0)", "-"]


def test_summary_shows_failures_rates_and_what_was_not_measured() -> None:
    text = summary(synthetic())
    assert "Pretended GPU" in text
    assert "failed: `tests/test_x.py::test_b`: AssertionError: wrong assert 1 == 2" in text
    # In one row of one table, and nowhere else.
    assert f"| time | {MAIN[0]} | {MAIN[1]} | trained | bfloat16 | {NO_TIME_LEFT} |" in text
    assert text.count(NO_TIME_LEFT) == 1
    rate = 2 * MAIN[0] ** 2 * MAIN[1] / 0.0005 / 1e12
    assert f"| {rate:.0f} |" in text
    assert "tests 100 s, measure 200 s" in text


def test_report_writes_every_table_of_a_gpu_run(tmp_path: Path) -> None:
    blocks = gpu.PRESENTATION.blocks(synthetic())
    assert {"gpu-bounds", "gpu-graphs", "gpu-rates", "loss-cuda", "gpu-cuda-environment"} <= set(
        blocks
    )


def test_figures_of_an_empty_run_are_not_measured() -> None:
    figures = read_figures(start_results("gpu", "cuda", {}))
    assert {bound.cells(figures)[-1] for bound in bounds()} == {"not measured"}


def tiny_stages(tmp_path: Path, test: str = "def test_good(): pass") -> dict:
    """Stages on the CPU, with nothing to compile."""
    (tmp_path / "test_small.py").write_text(test + "\n")
    tasks = [
        PatientTask("time", TINY, ("tiled", "eager", "mm"), seconds=0.1),
        Task("time", TINY, ("compile",), seconds=FAR_AWAY),
        PatientTask("graph", TINY, CAPTURED, seconds=0.1),
    ]
    return {
        "tests": lambda: TestStage([str(tmp_path / "test_small.py")], "cpu", "tiled", 1),
        "measure": lambda: TaskStage(tasks, "cpu"),
    }


def test_whole_run_writes_data_and_summary(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    gpu.run_stages(folder, tiny_stages(tmp_path), FAR_AWAY / 2)
    tests = load(folder / "tests.json").rows
    assert [(row["kind"], row["outcome"]) for row in tests] == [
        ("test", "passed"),
        *[("test", "skipped")] * 2,  # compute-sanitizer
    ]
    measured = load(folder / "measure.json").rows
    assert [row["kind"] for row in measured] == ["time"] * 4 + ["graph"] * 3
    text = (folder / "gpu.md").read_text()
    assert NO_TIME_LEFT in text
    assert "| passed | 1 |" in text
    assert re.search(r"Time taken: tests [\d.]+ s, measure [\d.]+ s\.", text)


def test_failed_tests_do_not_stop_measurements_and_fail_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tests: 1 of 3 tests failed"):
        gpu.run_stages(
            tmp_path, tiny_stages(tmp_path, "def test_bad(): assert False"), FAR_AWAY / 2
        )
    assert statuses(load(tmp_path / "measure.json").rows)["tiled"] == "ok"
    assert "failed: `" in (tmp_path / "gpu.md").read_text()


def test_stage_that_cannot_be_made_stops_no_other(tmp_path: Path) -> None:
    def broken() -> TaskStage:
        raise ValueError("not so\nand more")

    stages = {"smoke": broken, "measure": tiny_stages(tmp_path)["measure"]}
    with pytest.raises(UserError, match=r"^smoke: ValueError: not so$"):
        gpu.run_stages(tmp_path, stages, FAR_AWAY / 2)
    assert statuses(load(tmp_path / "measure.json").rows)["tiled"] == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--out", "nowhere"]) == 1
    assert "error: python -m bench gpu needs a CUDA device" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_time_has_to_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--seconds", "0"]) == 1
    assert "--seconds must be greater than 0, got 0.0" in capsys.readouterr().err


def test_folder_is_named_after_the_device() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
