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
    *_, rows = gpu_tests.run_tests(FAR_AWAY, [str(path)], processes)
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
    # In a process of its own.
    assert found["test_after"] == ("passed", "")


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


def test_what_was_known_comes_while_tests_run_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    path = tmp_path / "test_something.py"
    path.write_text(
        "import time\ndef test_a(): pass\n"
        f"def test_b():\n    if not open({str(begun)!r}, 'a').tell():\n"
        f"        open({str(begun)!r}, 'w').write('once')\n        time.sleep({FAR_AWAY})\n"
        "def test_c(): pass\n"
    )
    monkeypatch.setattr(gpu_tests, "_SAVED_EVERY", 0.0)
    for rows in gpu_tests.run_tests(FAR_AWAY, [str(path)], 1):
        known = {row["test"]: row["outcome"] for row in rows}
        if begun.exists() and "passed" in known.values():
            break  # as a call that is cut
    assert sorted(known.values()) == ["not run", "not run", "passed"]
    done = [name for name, outcome in known.items() if outcome == "passed"]
    *_, rows = gpu_tests.run_tests(FAR_AWAY, [str(path)], 1, done)
    assert [row["test"].rpartition("::")[2] for row in rows] == ["test_b", "test_c"]
    assert {row["outcome"] for row in rows} == {"passed"}


def test_test_that_hangs_is_ended_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is up once it has begun, and until it is ended."""
    begun = tmp_path / "begun"

    def clock() -> float:
        return time.time() + 10 * gpu_tests._LONGEST_TEST * begun.exists()

    end = gpu_tests._Share.end

    def end_and_go_on(share: gpu_tests._Share, reason: str, outcome: str) -> None:
        begun.unlink(missing_ok=True)
        end(share, reason, outcome)

    monkeypatch.setattr(gpu_tests._Share, "end", end_and_go_on)
    monkeypatch.setattr(gpu_tests, "time", SimpleNamespace(time=clock, sleep=time.sleep))
    rows = run_file(
        tmp_path,
        f"def test_hangs():\n    open({str(begun)!r}, 'w').close()\n    time.sleep({FAR_AWAY})\n"
        "def test_after(): pass\n",
    )
    assert (rows["test_hangs"]["outcome"], rows["test_hangs"]["message"]) == (
        "error",
        "took longer than 200 s",
    )
    assert rows["test_after"]["outcome"] == "passed"


def test_device_that_a_test_has_broken_is_left_to_another_process(tmp_path: Path) -> None:
    rows = run_file(
        tmp_path,
        """
import torch
def test_breaks(monkeypatch):
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = synchronize
    assert False, "CUDA error"
def test_after(): assert not torch.cuda.is_initialized()
""",
    )
    found = {name: row["outcome"] for name, row in rows.items()}
    assert found == {"test_breaks": "failed", "test_after": "passed"}


def test_process_that_cannot_begin_is_an_error(tmp_path: Path) -> None:
    *_, rows = gpu_tests.run_tests(FAR_AWAY, ["--no-such-option", str(tmp_path)], 1)
    (row,) = rows
    assert (row["test"], row["outcome"]) == ("process 1 of 1", "error")
    assert row["message"].startswith("pytest ended with code 4: ")
