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
from bench.measuring.cases import Case
from bench.measuring.variants import SMALL_STEPS, VARIANTS
from bench.reporting import results
from bench.reporting.loss_tables import loss_tables, read_loss


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a quick run on one small size."""
    path = tmp_path_factory.mktemp("bench") / "loss.json"
    arguments = ["loss", "--quick", "--no-memory", "--sizes", "64x16", "--small-sizes", "24x8"]
    assert cli.main([*arguments, "--out", str(path)]) == 0
    return path


def test_quick_run_writes_results_and_picture(quick_run: Path) -> None:
    content = json.loads(quick_run.read_text())
    assert {"machine", "versions", "git", "created", "torch_threads"} <= set(content)
    rows = {row["variant"]: row for row in content["rows"] if row["kind"] == "time"}
    assert set(rows) == set(VARIANTS)
    small = {row["variant"]: row for row in content["rows"] if row["kind"] == "small"}
    assert set(small) == set(SMALL_STEPS)
    assert small["core"]["status"] == "ok"
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
    full, _, _, peaks = loss_tables(made)
    keys = ["16384", "128", "random", "float32"]
    assert [*keys, "tiled", "memory only", *["-"] * 6, "123"] in full.rows
    reason = "skipped: would need about 8.8 GB"
    assert [*keys, "eager", reason, *["-"] * 6, reason] in full.rows
    assert peaks.rows[0][:3] == ["16384", "128", "float32"]
    assert any("compile" in note for note in full.notes)
    assert "compile" not in read_loss(made).variants


def test_small_steps_stand_beside_the_loss_alone_and_the_compiled_naive_loss(
    quick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = results.load(quick_run)
    case = {"kind": "small", **Case(64, 128).as_dict(), "status": "ok"}
    seconds = {"core": 2e-3, "drop-in": 3e-3, "core-compiled": 4e-3, "compile": 8e-3}
    made.rows = [
        {**case, "variant": name, "forward": [1e-3] * 5, "forward_backward": [whole] * 5}
        for name, whole in seconds.items()
    ]
    table = loss_tables(made)[1]
    cells = {row[4]: row for row in table.rows}
    assert table.columns[-2:] == ["/ core", "/ compile"]
    assert cells["drop-in"][-2] == "1.50 (1.50-1.50)"
    assert cells["core-compiled"][-1] == "0.500 (0.500-0.500)"
    # Nowhere else: sizes and variants of other tables are not theirs.
    assert not any(other.rows for other in loss_tables(made) if other.name != table.name)
    results.save(made, quick_run.with_name("small.json"))
    assert cli.main(["report", str(quick_run.with_name("small.json"))]) == 0
    assert "Small steps on cpu" in capsys.readouterr().out
