"""The tests that ``python -m bench gpu`` runs: every outcome is known, and they end in time."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.gpu import command as gpu
from bench.gpu import device_tests as gpu_tests
from tests.bench.gpu.gpu_tasks import FAR_AWAY


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
        "from bench.gpu import pytest_records\n"
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


def test_less_than_nine_minutes() -> None:
    """Also where tests use all their time and a test hangs."""
    assert gpu.DEFAULT_SECONDS + gpu_tests._GRACE < 9 * 60 - 20
