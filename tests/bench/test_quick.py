# ruff: noqa: E402
"""``python -m bench quick``: a run, its table and chart, and what is not measured."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

for _module in ("matplotlib", "psutil", "pytorch_metric_learning", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.measuring.timing import Effort
from bench.quick import command
from bench.quick.tables import quick_tables, read_sizes
from bench.reporting import results
from tests.support.targets import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a small run of a loss with a vector for each class."""
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    options = ["--rows", "64", "--dim", "16", "--loss", "ProxyAnchorLoss", "--classes", "10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_EFFORT", Effort(0.1, min_rounds=3, max_rounds=3))
        assert cli.main(["quick", *options, "--device", "cpu", "--out", str(path)]) == 0
    return path


def test_a_run_leaves_results_a_table_and_a_chart(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = results.load(run).rows
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["kind"], row["variant"], row["rows"]) for row in rows} == {
        (kind, variant, size)
        for kind in ("time", "memory")
        for variant in ("core", "pml")
        for size in (32, 64)
    }
    assert run.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:quick-cpu -->\n<!-- /bench:quick-cpu -->\n")
    assert cli.main(["report", str(run), "--write", str(page)]) == 0
    assert "ProxyAnchorLoss on cpu, D=16, float32, 10 classes" in page.read_text()
    assert "times faster" in capsys.readouterr().out


def test_what_would_take_too_much_memory_is_said(run: Path, tmp_path: Path) -> None:
    made, reason = results.load(run), "skipped: would need about 18 GB"
    for row in made.rows:
        if (row["rows"], row["variant"]) == (64, "pml"):
            for measured in ("forward", "forward_backward", "peak_bytes"):
                row.pop(measured, None)
            row["status"] = reason
        elif row["kind"] == "memory":
            row["peak_bytes"] = 12e6 if row["variant"] == "pml" else 10
    (table,) = quick_tables(made)
    assert [row[0] for row in table.rows] == ["32", "64"]
    assert table.rows[0][4:] == ["< 1", "12.0"]
    assert table.rows[1][2:] == [reason, "-", "< 1", reason]
    small, large = read_sizes(made)
    assert small.expected_megabytes("pml") is None
    assert large.expected_megabytes("pml") == 44 * 64 * 10 / 1e6
    command.PRESENTATION.draw(made, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


@pytest.mark.parametrize("place", ["folder", "chart.png", "file/results.json"])
def test_a_place_that_cannot_hold_results_is_refused_before_anything_is_measured(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert cli.main(["quick", "--device", "cpu", "--out", str(tmp_path / place)]) == 1
    assert "--out must be a file other than the chart's .png, got" in capsys.readouterr().err


def test_where_nothing_ran_the_table_says_why(run: Path, tmp_path: Path) -> None:
    made = results.load(run)
    made.rows = [
        {**row, "status": "failed: too large", "forward": [], "forward_backward": []}
        for row in made.rows
    ]
    for row in made.rows:
        row.pop("peak_bytes", None)
    (table,) = quick_tables(made)
    assert table.rows[0][1] == "failed: too large"
    command.PRESENTATION.draw(made, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0


def test_the_backend_that_is_measured_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert results.load(run).settings["backend"].startswith("backend cpu, usable")
    monkeypatch.setattr(command, "resolve_backend", lambda *_: "tiled")
    assert command._backend("cpu", "float32").startswith("the slower backend tiled, since cpu is")


def test_sizes_grow_by_four_up_to_what_is_asked_for() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    found = command.cases(parser.parse_args([]), "cpu")
    assert [case.rows for case in found] == [256, 1024, 4096, 16384]
    assert dataclasses.replace(found[0], rows=0).as_dict() == {
        "loss": "CircleLoss",
        "rows": 0,
        "dim": 128,
        "classes": 0,
        "dtype": "float32",
        "device": "cpu",
    }
    given = ["--rows", "100", "--loss", "ArcFaceLoss", "--dtype", "bfloat16"]
    found = command.cases(parser.parse_args(given), "cpu")
    assert [(case.rows, case.classes, case.dtype) for case in found] == [
        (32, 1000, "bfloat16"),
        (100, 1000, "bfloat16"),
    ]
