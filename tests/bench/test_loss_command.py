# ruff: noqa: E402
"""``python -m bench loss`` and ``report``: a quick run, and what is made of its results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

# The harness has dependencies of its own: pip install -e '.[bench]'.
for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.measuring.variants import VARIANTS
from bench.reporting import results
from bench.reporting.loss_tables import loss_tables, read_loss


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a quick run on one small size."""
    path = tmp_path_factory.mktemp("bench") / "loss.json"
    arguments = ["loss", "--quick", "--no-memory", "--sizes", "64x16", "--out", str(path)]
    assert cli.main(arguments) == 0
    return path


def test_quick_run_writes_results_and_picture(quick_run: Path) -> None:
    content = json.loads(quick_run.read_text())
    assert {"machine", "versions", "git", "created", "torch_threads"} <= set(content)
    rows = {row["variant"]: row for row in content["rows"]}
    assert set(rows) == set(VARIANTS)
    for name in ("tiled", "eager"):
        assert rows[name]["status"] == "ok"
        assert len(rows[name]["forward"]) == len(rows[name]["forward_backward"]) >= 5
    assert rows["compile"]["status"].startswith("skipped: ")
    picture = quick_run.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_report_prints_rewrites_and_draws(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    names = ("loss-cpu", "loss-cpu-times", "loss-cpu-memory", "loss-cpu-environment")
    page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    arguments = ["report", str(quick_run), "--write", str(page), "--plot", str(picture)]
    assert cli.main(arguments) == 0
    assert "speed-up over" in capsys.readouterr().out
    text = page.read_text()
    assert "| 64 | 16 | random | float32 | tiled |" in text
    assert f"torch {torch.__version__}" in text
    assert picture.exists()
    # A second time changes nothing.
    assert cli.main(arguments) == 0
    assert page.read_text() == text


def test_report_on_a_page_without_markers_says_which_it_wants(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    assert cli.main(["report", str(quick_run), "--write", str(page)]) == 1
    assert "<!-- bench:loss-cpu -->" in capsys.readouterr().err
    assert page.read_text() == "nothing"


def test_tables_show_reasons_and_memory_only_sizes(quick_run: Path) -> None:
    made = dataclasses.replace(results.load(quick_run))
    size = {"kind": "memory", "rows": 16384, "dim": 128, "dtype": "float32", "regime": "random"}
    made.rows = [
        *made.rows,
        {**size, "variant": "tiled", "status": "ok", "peak_bytes": 123_400_000},
        {**size, "variant": "eager", "status": "skipped: would need about 8.8 GB"},
    ]
    full, _, peaks = loss_tables(made)
    keys = ["16384", "128", "random", "float32"]
    assert [*keys, "tiled", "memory only", *["-"] * 6, "123"] in full.rows
    reason = "skipped: would need about 8.8 GB"
    assert [*keys, "eager", reason, *["-"] * 6, reason] in full.rows
    assert peaks.rows[0][:3] == ["16384", "128", "float32"]
    assert any("compile" in note for note in full.notes)
    assert "compile" not in read_loss(made).variants
