"""``python -m bench gpu``: what it does around the device, shown where there is none."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as cli
from bench.gpu import command as gpu
from bench.gpu import device_tests as gpu_tests
from bench.gpu.bounds import bounds, read_figures
from bench.gpu.tables import gpu_tables, summary
from bench.gpu.tasks import CAPTURED, EVERY, LARGE, MAIN, NO_TIME_LEFT, SMALL, Task, all_tasks
from bench.gpu.worker import run_tasks
from bench.measuring import sweep
from bench.measuring.cases import Case
from bench.measuring.timing import CapturedStep
from bench.measuring.variants import VARIANTS, Work
from bench.reporting import command as report
from bench.reporting.errors import UserError
from bench.reporting.results import Results, load, start_results

TINY = Case(32, 8)


def tasks_by_kind(kind: str) -> list[Task]:
    return [task for task in all_tasks("cuda") if task.kind == kind]


def test_no_case_is_measured_twice() -> None:
    measured = [(task.kind, task.case) for task in all_tasks("cuda")]
    assert len(measured) == len(set(measured))


def test_cases_span_what_was_asked_for() -> None:
    timed = tasks_by_kind("time")
    for dtype in ("bfloat16", "float32"):
        cases = [task.case for task in timed if task.case.dtype == dtype]
        rows = {case.rows for case in cases if case.dim == 512}
        assert {128, 256, 1_024, 16_384, 65_536} <= rows
        assert {case.dim for case in cases if case.rows == 8_192} == {64, 128, 256, 512, 1024, 2048}
        assert {case.regime for case in cases} == {"random", "trained"}
    assert {task.case.rows for task in tasks_by_kind("graph")} == {64, 128, 256, 512, 1_024}


def test_what_bounds_are_stated_for_comes_first_and_with_every_peer() -> None:
    tasks = all_tasks("cuda")
    wanted = {bound.case for bound in bounds()}
    begun = 0.0
    for task in tasks:
        case = task.case
        wanted.discard((case.rows, case.dim, case.regime, case.dtype))
        begun += task.expected_seconds
        if not wanted:
            break
    assert not wanted
    # All of it fits into what the tests leave of nine minutes.
    assert begun < (1 - gpu._SHARE_OF_TESTS) * gpu.DEFAULT_SECONDS
    assert tasks[0].case == Case(*MAIN, "random", "bfloat16", "cuda")
    assert tasks[0].variants == tasks[1].variants == EVERY


def test_tasks_that_compile_for_the_same_size_follow_one_another() -> None:
    places: dict[tuple[int, int, str], list[int]] = {}
    for index, task in enumerate(all_tasks("cuda")):
        if task.kind == "time" and "compile" in task.variants:
            size = (task.case.rows, task.case.dim, task.case.dtype)
            places.setdefault(size, []).append(index)
    assert len(places) > 1
    for indices in places.values():
        assert indices == list(range(indices[0], indices[0] + len(indices)))


# No verdict here depends on how long something takes: what is to end ends at once, and what is to
# hang does so for longer than a test may take.
FAR_AWAY = 1e6


class _Patient(Task):
    """May take as long as a busy machine makes of it."""

    @property
    def longest_seconds(self) -> float:
        return FAR_AWAY


def statuses(rows: list[dict]) -> dict[str, str]:
    return {row["variant"]: row["status"] for row in rows}


def test_worker_measures_and_what_fails_is_a_row() -> None:
    tasks = [
        _Patient("time", TINY, ("tiled", "mm"), seconds=0.1),
        _Patient("graph", TINY, ("tiled",), seconds=0.1),  # there are no graphs without a device
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
        _Patient("time", TINY, ("mm",), seconds=0.1),
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


class _Dies(_Patient):
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
        _Patient("time", TINY, ("mm",), seconds=0.1),
    ]
    died, hung, measured = run_tasks(tasks, time.monotonic() + FAR_AWAY)
    assert statuses(died) == {"mm": "failed: the process ended with code 7"}
    assert statuses(hung) == {"mm": "failed: took longer than 1 s"}
    assert statuses(measured) == {"mm": "ok"}


def test_deadline_stops_a_task_that_hangs() -> None:
    (rows,) = run_tasks([_HangsForEver("time", TINY, ("mm",))], time.monotonic() + 1)
    assert statuses(rows) == {"mm": NO_TIME_LEFT}


def run_file(folder: Path, content: str, processes: int = 1) -> dict:
    path = folder / "test_something.py"
    path.write_text("import os, time\nimport pytest\n" + content)
    rows = gpu_tests.run_tests(FAR_AWAY, [str(path)], processes)
    assert all(row["kind"] == "test" for row in rows)
    return {row["test"].rpartition("::")[2]: row for row in rows}


def test_every_outcome_of_a_test_is_recorded_with_its_reason(tmp_path: Path) -> None:
    rows = run_file(
        tmp_path,
        """
@pytest.fixture
def broken():
    yield
    raise RuntimeError("in a fixture")
def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
def test_left_out(): pytest.skip("one device")
def test_with_fixture(broken): pass
def test_takes_the_process(): os._exit(3)
def test_after(): pass
""",
    )
    found = {name: (row["outcome"], row.get("message", "")) for name, row in rows.items()}
    assert found["test_good"] == ("passed", "")
    assert found["test_bad"][0] == "failed"
    assert "one is not two" in found["test_bad"][1]
    assert found["test_left_out"] == ("skipped", "one device")
    assert found["test_with_fixture"] == ("failed", "RuntimeError: in a fixture")
    assert found["test_takes_the_process"] == ("error", "pytest ended with code 3 during this test")
    assert found["test_after"] == ("not run", "pytest ended with code 3")


def test_tests_end_in_time_and_what_was_not_run_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is up as soon as the first test has begun, whenever that is."""
    begun = tmp_path / "begun"

    def clock() -> float:
        return time.time() + 2 * FAR_AWAY * begun.exists()

    monkeypatch.setattr(gpu_tests, "time", SimpleNamespace(time=clock, sleep=time.sleep))
    rows = run_file(
        tmp_path,
        f"def test_slow():\n    open({str(begun)!r}, 'w').close()\n    time.sleep({FAR_AWAY})\n"
        "def test_never(): pass\n",
    )
    assert rows["test_slow"]["message"] == "was running when time was up"
    assert rows["test_never"]["message"] == "no time left"


def test_no_test_begins_after_time_is_up(tmp_path: Path) -> None:
    rows = run_file(
        tmp_path,
        "from bench import pytest_records\n"
        "def test_slow():\n    pytest_records.time.time = lambda: float('inf')\n"
        "def test_never(): pass\n",
    )
    assert rows["test_slow"]["outcome"] == "passed"
    assert (rows["test_never"]["outcome"], rows["test_never"]["message"]) == (
        "not run",
        "no time left",
    )


def test_processes_share_the_tests(tmp_path: Path) -> None:
    content = "@pytest.mark.parametrize('i', range(7))\ndef test_one(i): pass\n"
    rows = run_file(tmp_path, content, processes=2)
    assert sorted(rows) == [f"test_one[{i}]" for i in range(7)]
    assert {row["outcome"] for row in rows.values()} == {"passed"}


def test_file_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    (row,) = run_file(tmp_path, "import no_such_module\n", processes=2).values()
    assert row["outcome"] == "failed"
    assert row["message"] == "ModuleNotFoundError: No module named 'no_such_module'"


def time_row(case: tuple, variant: str, forward: float, whole: float | None = None) -> dict:
    rows, dim, regime, dtype = case
    row = {"kind": "time", "rows": rows, "dim": dim, "regime": regime, "dtype": dtype}
    row |= {"variant": variant, "status": "ok", "forward": [forward] * 5, "device": "cuda"}
    return {**row, "forward_backward": [] if whole is None else [whole] * 5}


def synthetic() -> Results:
    """A run in which two bounds are not held, and one case was not reached."""
    results = start_results("gpu", "cuda", {"seconds_spent": {"tests": 100, "measurements": 200}})
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
    assert "tests 100 s, measurements 200 s" in text


def test_report_writes_every_table_of_a_gpu_run(tmp_path: Path) -> None:
    blocks = report.blocks(synthetic())
    assert {"gpu-bounds", "gpu-graphs", "gpu-rates", "loss-cuda", "gpu-cuda-environment"} <= set(
        blocks
    )


def test_figures_of_an_empty_run_are_not_measured() -> None:
    figures = read_figures(start_results("gpu", "cuda", {}))
    assert {bound.cells(figures)[-1] for bound in bounds()} == {"not measured"}


def tiny_tasks() -> list[Task]:
    return [
        Task("time", TINY, ("tiled", "eager", "mm"), seconds=0.1),
        Task("time", TINY, ("compile",), seconds=1000.0),
        Task("graph", TINY, CAPTURED, seconds=0.1),
    ]


def test_whole_run_writes_data_and_summary(tmp_path: Path) -> None:
    (tmp_path / "test_small.py").write_text("def test_good(): pass\n")
    gpu.test_and_measure(tmp_path / "new", 90, tiny_tasks(), [str(tmp_path)], "cpu")
    results = load(tmp_path / "new" / "gpu.json")
    assert [row["kind"] for row in results.rows] == ["test"] + ["time"] * 4 + ["graph"] * 3
    assert set(results.settings["seconds_spent"]) == {"tests", "measurements"}
    text = (tmp_path / "new" / "gpu.md").read_text()
    assert NO_TIME_LEFT in text
    assert "| passed | 1 |" in text


def test_failed_tests_do_not_stop_measurements_and_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_small.py").write_text("def test_bad(): assert False\n")
    with pytest.raises(UserError, match="1 of 1 tests failed"):
        gpu.test_and_measure(tmp_path, 90, tiny_tasks()[:1], [str(tmp_path)], "cpu")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert statuses(content["rows"][1:]) == {"tiled": "ok", "eager": "ok", "mm": "ok"}
    assert "failed: `" in (tmp_path / "gpu.md").read_text()


def test_interrupted_run_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tasks: list[Task], deadline: float):
        yield tasks[0].rows_without_result("ok")
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.test_and_measure(tmp_path, 60, tiny_tasks(), None, "cpu")
    assert len(load(tmp_path / "gpu.json").rows) == 3
    assert (tmp_path / "gpu.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--out", "nowhere"]) == 1
    assert "error: python -m bench gpu needs a CUDA device" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_time_has_to_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--seconds", "0"]) == 1
    assert "--seconds must be greater than 0, got 0.0" in capsys.readouterr().err


def test_folder_is_named_after_the_device() -> None:
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_less_than_nine_minutes() -> None:
    """Also where tests use all their time and a test hangs."""
    assert gpu.DEFAULT_SECONDS + gpu_tests._GRACE < 9 * 60 - 20
