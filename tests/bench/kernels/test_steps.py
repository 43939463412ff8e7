# ruff: noqa: E402
"""Rows, tables and budgets of modelled steps, and the command that writes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.places import ROOT

for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)
pytest.importorskip("triton", minversion="3.3")

from bench import __main__ as cli
from bench.kernels import command as kernels
from bench.kernels import planned
from bench.kernels.budgets import MOST_OF_STEP, slow_steps
from bench.kernels.model import Assumptions, Body, Launch, Programs, Step, step_microseconds
from bench.kernels.steps import step_rows, step_tables, step_totals
from bench.reporting import results

# One product that takes the unit twice, and as many cycles beside it.
TILE = Launch("tiles", (Body(matrix=1000, issue=1000),), (Programs(4, (2,)),))
STEP = Step("made up", 4, 1000, (TILE, TILE, Launch("mm", TILE.bodies, (Programs(2, (1,)),))))
WITHOUT_GAPS = Assumptions(launch_microseconds=0)


def test_rows_join_what_has_one_name_and_as_many_programs() -> None:
    rows = step_rows("key", STEP, WITHOUT_GAPS)
    assert [(row["launch"], row["launches"], row["programs"]) for row in rows] == [
        ("tiles", 2, 4),
        ("mm", 1, 2),
    ]
    assert rows[0]["cycles"] == 2 * 4000
    assert rows[0]["filled"] == 1
    assert rows[1]["filled"] == 0.5
    total = sum(row["microseconds"] for row in rows)
    assert total == pytest.approx(step_microseconds(STEP, WITHOUT_GAPS), abs=0.01)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command has one small step, a results folder and a page of its own."""
    monkeypatch.setattr(planned, "STEPS", {"self": None})
    monkeypatch.setattr(planned, "planned_step", lambda key: STEP)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    page = tmp_path / "kernels.md"
    names = ("steps-self", "steps-alternatives", "steps-cuda-environment")
    page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    monkeypatch.setattr(kernels, "_DOCUMENT", page)
    return tmp_path


def test_tables_show_totals_in_units_of_the_product(made_up: Path) -> None:
    found = kernels.model_steps(WITHOUT_GAPS)
    # Two launches of 4 programs of 2 tiles, each of 2,000 cycles, and one of a tile.
    assert step_totals(found) == {"self": pytest.approx(2 * 4 + 2, rel=1e-3)}
    table, alternatives = step_tables(found)
    assert table.name == "steps-self"
    assert table.rows[-1][:2] == ["all", "3"]
    assert table.rows[-1][-1] == "10.000"
    changed = {row[0]: row[1] for row in alternatives.rows}
    assert changed["none changed"] == "10.00"
    assert changed["--overlap 1"] == "5.00"
    assert changed["--launch-microseconds 3"] != "10.00"


def test_slow_steps_are_named(made_up: Path) -> None:
    found = kernels.model_steps(WITHOUT_GAPS)
    assert slow_steps(found) == [f"step self: 10.00 mm, at most {MOST_OF_STEP['self']}"]
    assert slow_steps(SimpleNamespace(rows=[], settings=found.settings)) == []


def test_usual_assumptions_are_written_down(
    made_up: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["kernels", "--model"]) == 0
    assert "made up" in capsys.readouterr().out
    assert results.load(made_up / "steps.json").settings["assumptions"]["bytes_per_cycle"] == 48
    assert "made up" in (made_up / "kernels.md").read_text()


def test_others_are_not(made_up: Path) -> None:
    before = (made_up / "kernels.md").read_text()
    assert cli.main(["kernels", "--model", "--overlap", "1"]) == 0
    assert (made_up / "kernels.md").read_text() == before
    assert not (made_up / "steps.json").exists()
    partial = results.load(made_up / "steps-partial.json")
    assert partial.settings["assumptions"]["overlap"] == 1


def test_committed_steps_are_what_the_page_shows() -> None:
    committed = results.load(ROOT / "bench" / "results" / "steps.json")
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for name, content in kernels.STEPS_PRESENTATION.blocks(committed).items():
        assert f"<!-- bench:{name} -->\n{content}\n<!-- /bench:{name} -->" in page
    assert slow_steps(committed) == []
    assert committed.settings["assumptions"] == {
        name: pytest.approx(value) for name, value in vars(Assumptions()).items()
    }
