"""``python -m bench distributed``, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as cli
from bench.distributed import command
from bench.distributed.methods import ALONE, methods_of
from bench.distributed.processes import Group
from bench.measuring.worker import WorkerError
from bench.reporting.results import load


def test_quick_run_writes_results_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "distributed.json"
    assert cli.main(["distributed", "--quick", "--out", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["kind"] for row in rows} == {"time", "memory", "share"}
    assert [row for row in rows if row.get("status", "ok").startswith("failed")] == []
    for row in rows:
        if row["kind"] == "time" and row["status"] == "ok":
            assert len(row["compute"]) == len(row["wall"]) == 2
            assert (sum(row["sent_bytes"].values()) > 0) == (row["method"] != ALONE)
    page = tmp_path / "page.md"
    names = ("distributed-cpu", "distributed-cpu-share", "distributed-cpu-environment")
    page.write_text("".join(f"<!-- bench:{n} -->\n<!-- /bench:{n} -->\n" for n in names))
    capsys.readouterr()
    assert cli.main(["report", str(path), "--write", str(page)]) == 0
    assert "| 64 | 16 | - | 2 | gather |" in page.read_text()
    assert "| 32 | 16 | 40 | 2 | replicated |" in page.read_text()
    assert load(path).torch_threads == 1


def test_first_method_is_the_unit_of_the_others() -> None:
    for case in command.CASES:
        first, *others = methods_of(case)
        assert (first.name, first.alone) == (ALONE, True)
        assert not any(method.alone for method in others)
        assert case.rows % max(command.SHARES) == 0


def test_process_that_fails_takes_the_others_along_and_is_named() -> None:
    with Group(2) as group, pytest.raises(WorkerError, match="KeyError: 'unknown'"):
        group.ask("unknown")
