# ruff: noqa: E402
"""Results of whole runs are never replaced by those of a part."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

# The harness has dependencies of its own: pip install -e '.[bench]'.
for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.classes import command as classes
from bench.gpu import command as gpu
from bench.kernels import command as kernels
from bench.launches import command as launches
from bench.loss import command as loss
from bench.measuring.cases import Case
from bench.measuring.variants import VARIANTS
from bench.reporting import results
from bench.reporting.publish import Presentation
from bench.reporting.tables import Table
from bench.tune import command as tune


@pytest.mark.parametrize("command", [loss, classes, kernels, launches, gpu, tune])
def test_every_option_but_where_to_run_and_write_makes_a_run_partial(command) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    assert results.is_whole(argparse.Namespace(**defaults), command.add_arguments)
    for option in defaults:
        changed = argparse.Namespace(**{**defaults, option: "other"})
        whole = option in ("device", "out")
        assert results.is_whole(changed, command.add_arguments) == whole, option


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of its own with results of whole runs."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for command in (kernels, launches):  # nor are documents to be written
        monkeypatch.setattr(command, "_DOCUMENT", tmp_path / "no-such-page.md")
    for name in ("loss-cpu", "class-cpu", "kernels", "launches"):
        (tmp_path / f"{name}.json").write_text("whole")
    return tmp_path


def whole_results(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.read_bytes() == b"whole"}


MEASURED = [
    {"kind": "time", **Case(16, 4).as_dict(), "variant": "mm", "status": "failed: not measured"}
]


# A table of no rows, and an empty picture.
SHOWS_NOTHING = Presentation(
    lambda results: [Table("nothing", "nothing", ["nothing"], keys=1)],
    lambda results: "",
    lambda results, path: path.write_bytes(b""),
)
ALL_WHOLE = {"loss-cpu.json", "class-cpu.json", "kernels.json", "launches.json"}


@pytest.mark.parametrize(
    ("arguments", "partial"),
    [
        (["loss", "--sizes", "16x4", "--variants", "tiled", "--no-memory"], "loss-cpu-partial"),
        (["loss", "--sizes", "16x4", "--rounds", "2", "--no-memory"], "loss-cpu-partial"),
        (["class", "--quick"], "class-cpu-partial"),
        (["kernels", "--targets", "sm_90"], "kernels-partial"),
    ],
)
def test_partial_run_leaves_the_results_of_whole_ones(
    arguments: list[str], partial: str, committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    monkeypatch.setattr(classes, "_measure", lambda *part: [])
    monkeypatch.setattr(kernels, "compile_all", lambda targets: [])
    for command in (loss, classes, kernels):
        monkeypatch.setattr(command, "PRESENTATION", SHOWS_NOTHING)
    assert cli.main(arguments) == 0
    assert whole_results(committed) == ALL_WHOLE
    assert json.loads((committed / f"{partial}.json").read_text())["schema"] == results.SCHEMA
    name = partial.removesuffix("-partial")
    assert cli.main([*arguments, "--out", str(committed / f"{name}.json")]) == 1
    assert whole_results(committed) == ALL_WHOLE


def test_run_without_a_peer_leaves_the_results_of_whole_ones(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(VARIANTS["pml"], missing=lambda case: "not here")
    monkeypatch.setitem(VARIANTS, "pml", absent)
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    monkeypatch.setattr(launches, "count_case", lambda name, case: {})
    monkeypatch.setattr(launches, "exceeded_budgets", lambda rows: [])
    for command in (loss, launches):
        monkeypatch.setattr(command, "PRESENTATION", SHOWS_NOTHING)
    for command in ("loss", "launches"):
        assert cli.main([command]) == 0
    assert whole_results(committed) == ALL_WHOLE


def test_whole_run_replaces_the_results_when_it_has_ended(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(plan):
        yield MEASURED
        raise KeyboardInterrupt

    present = dataclasses.replace(VARIANTS["pml"], missing=lambda case: None)
    monkeypatch.setitem(VARIANTS, "pml", present)
    monkeypatch.setattr(loss, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["loss"])
    assert whole_results(committed) == ALL_WHOLE
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    assert cli.main(["loss"]) == 0
    assert whole_results(committed) == ALL_WHOLE - {"loss-cpu.json"}
    assert results.load(committed / "loss-cpu.json").rows == MEASURED
    assert (committed / "loss-cpu.png").exists()
    assert not (committed / "loss-cpu-partial.json").exists()
