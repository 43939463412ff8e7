# ruff: noqa: E402
"""``python -m bench losses``: its cases, a quick run, one that was cut, and its tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

for _module in ("psutil", "pytorch_metric_learning", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.losses import command
from bench.losses.tables import losses_tables
from bench.losses.variants import LOSSES, VARIANTS, LossCase, LossWork
from bench.reporting import results
from tests.support.targets import INTERPRETED

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter lane is for kernels"),
    pytest.mark.filterwarnings("ignore:circle_kernels. the tiled backend"),
]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a quick run."""
    path = tmp_path_factory.mktemp("bench") / "losses.json"
    assert cli.main(["losses", "--quick", "--out", str(path)]) == 0
    return path


@pytest.mark.parametrize("name", LOSSES)
def test_drop_in_and_library_compute_the_same(name: str) -> None:
    case = LossCase(name, 40, 16, 30 if LOSSES[name].has_weights else 0)
    values = {}
    for variant in ("core", "drop-in", "pml"):
        work = LossWork(VARIANTS[variant], case)
        work.step()
        values[variant] = work.forward().item()
    assert values["drop-in"] == pytest.approx(values["pml"], rel=1e-5)
    if not LOSSES[name].has_weights:  # which are drawn otherwise
        assert values["core"] == pytest.approx(values["pml"], rel=1e-5)


def test_what_takes_too_much_memory_is_skipped_with_what_it_would_take() -> None:
    case = LossCase("NTXentLoss", 2048, 128)
    assert VARIANTS["pml"].unusable(case, 5e9) == "skipped: would need about 146.0 GB"
    assert VARIANTS["drop-in"].unusable(case, 5e9) is None
    assert VARIANTS["pml"].unusable(LossCase("NTXentLoss", 256, 128), 5e9) is None


def test_whole_run_has_every_loss_at_every_size() -> None:
    cases = command.timed_cases(quick=False)
    assert len(set(cases)) == len(cases)
    for name in LOSSES:
        for rows in (256, 1024, 4096):
            for dim in (128, 512):
                assert any((c.loss, c.rows, c.dim) == (name, rows, dim) for c in cases)
    assert LossCase("ArcFaceLoss", 1024, 128, 100_000) in cases
    assert set(command.gauged_cases(quick=False)) < set(cases)


def test_quick_run_writes_results_and_tables(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(quick_run.read_text())["rows"]
    timed = [row for row in rows if row["kind"] == "time"]
    assert {row["loss"] for row in timed} == set(LOSSES)
    assert {row["variant"] for row in timed if row["status"] == "ok"} == {"core", "drop-in", "pml"}
    assert {row["variant"] for row in rows if row["kind"] == "memory"} == {"drop-in", "pml"}
    page = tmp_path / "page.md"
    names = ("losses-cpu", "losses-cpu-replaced", "losses-cpu-memory", "losses-cpu-environment")
    page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    assert cli.main(["report", str(quick_run), "--write", str(page)]) == 0
    text = page.read_text()
    assert "| `SupConLoss` | - |" in text
    assert "| ArcFaceLoss | 32 | 16 | 50 | drop-in |" in text
    assert "speed-up over pml" in capsys.readouterr().out


def test_run_that_was_cut_goes_on(
    quick_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    cases = command.timed_cases(quick=True)[:3]
    monkeypatch.setattr(command, "timed_cases", lambda quick: cases)
    monkeypatch.setattr(command, "gauged_cases", lambda quick: [])
    monkeypatch.setattr(command, "_EFFORT", command._QUICK_EFFORT)
    measured = []

    def times(case, effort, names):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(case)
        status = {"variant": "pml", "status": "failed: for a test"}
        return [{"kind": "time", **case.as_dict(), **status}]

    monkeypatch.setattr(command, "time_case", times)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["losses"])
    assert not (tmp_path / "losses-cpu.json").exists()
    del measured[1:]  # so that one more may come
    assert cli.main(["losses"]) == 0
    assert measured == [cases[0], cases[2]]
    whole = results.load(tmp_path / "losses-cpu.json")
    assert [row["loss"] for row in whole.rows] == [case.loss for case in cases]
    # A run that came to its end leaves nothing to go on with.
    measured.clear()
    monkeypatch.setattr(command, "timed_cases", lambda quick: cases[:1])
    assert cli.main(["losses"]) == 0
    assert measured == cases[:1]


def test_tables_show_reasons_ratios_and_peaks(quick_run: Path) -> None:
    made = dataclasses.replace(results.load(quick_run), rows=[])
    for rows, library in ((256, [9.0] * 3), (1024, None)):
        case = {"loss": "NTXentLoss", "rows": rows, "dim": 128, "classes": 0}
        reason = "ok" if library else "skipped: would need about 18 GB"
        times = {"forward": [1.0] * 3, "forward_backward": [2.0] * 3}
        of_library = {"forward": library, "forward_backward": library} if library else {}
        made.rows += [
            {"kind": "time", **case, "variant": "drop-in", "status": "ok", **times},
            {"kind": "time", **case, "variant": "pml", "status": reason, **of_library},
            {"kind": "memory", **case, "variant": "drop-in", "status": "ok", "peak_bytes": 12e6},
            {"kind": "memory", **case, "variant": "pml", "status": reason}
            | ({"peak_bytes": 345e6} if library else {}),
        ]
    for row in [row for row in made.rows if row["kind"] == "time"]:
        made.rows.append({**row, "loss": "SupConLoss"})
    replaced, times, memory = losses_tables(made)
    assert replaced.columns == ["import", "C", "N=256", "N=1024", "MB, library", "MB, drop-in"]
    assert replaced.rows[0][2:] == ["4.50", "would need about 18 GB", "345 (N=256)", "12.0 (N=256)"]
    assert times.rows[0][-2] == "4.50 (4.50-4.50)"
    assert memory.rows[1][-2:] == ["12.0", "skipped: would need about 18 GB"]
