"""Every recipe runs from its data set to its table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.recipes.programs  # noqa: F401  # isort: skip

from recipes.__main__ import main
from recipes.configuration import names, read
from tests.recipes.drawn import DRAWN, changes

METRICS = {
    "cub": ["recall@1", "recall@2", "recall@4", "recall@8"],
    "sop": ["recall@1", "recall@10", "recall@100", "recall@1000"],
    "market": ["rank@1", "rank@5", "rank@10", "map"],
    "faces_circle": ["lfw", "cfp_fp", "ijbc TAR@0.001", "ijbc TAR@0.0001", "ijbc TAR@1e-05"],
}
FAMILIES = {"cars": "cub", "msmt17": "market"} | dict.fromkeys(
    ("faces_am_softmax", "faces_arcface"), "faces_circle"
)


def run(config: str, data: Path, out: Path, *more: str) -> dict[str, float]:
    main([config, f"--data={data}", f"--out={out}", *more])
    return json.loads((out / "results.json").read_text("utf-8"))


def test_every_configuration_is_tested() -> None:
    assert names() == sorted(DRAWN)


@pytest.mark.parametrize("config", sorted(DRAWN))
def test_recipe_runs_from_data_to_table(
    config: str,
    data_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = run(config, data_of(config), tmp_path, *changes(config))
    paper = read(config).paper
    table = capsys.readouterr().out
    for name in METRICS[FAMILIES.get(config, config)]:
        row = next(line for line in table.splitlines() if name in line)
        # Ours, then each of the paper's, under the same name.
        cells = re.findall(r"[\d.]+|-", row.partition(name)[2])
        assert cells[0] == f"{100 * results[name]:.2f}"
        reported = (each.get(name) for each in paper.values())
        assert cells[1:] == ["-" if each is None else f"{each:.2f}" for each in reported]
    assert paper


def test_training_learns_what_the_data_show(data_of: Callable[[str], Path], tmp_path: Path) -> None:
    short, long = (
        run(
            "faces_circle",
            data_of("faces_circle"),
            tmp_path / steps,
            *changes(
                "faces_circle", f"training.steps={steps}", "data.templates=[]", "loss.gamma=16"
            ),
        )["loss"]
        for steps in ("1", "40")
    )
    assert long < 0.5 * short


@pytest.mark.parametrize(
    "change",
    [
        ["--amp"],
        ["--set", "run.chunk=3"],
        ["--set", "run.workers=1"],
        ["--set", "model.head=linear-norm", "--set", "model.freeze_norms=true"],
        ["--set", "loss.softmax_weight=1"],
    ],
    ids=["amp", "chunk", "workers", "frozen", "softmax"],
)
def test_option_leaves_a_loss_near_that_without_it(
    change: list[str], data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    data = data_of("cub")
    plain = run("cub", data, tmp_path / "plain", *changes("cub", "training.steps=2"))
    changed = run("cub", data, tmp_path / "changed", *changes("cub", "training.steps=2"), *change)
    if change[-1] == "run.workers=1":
        assert changed == plain
    elif change[-1] == "run.chunk=3":
        assert changed["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    elif change == ["--amp"]:
        assert changed["loss"] == pytest.approx(plain["loss"], rel=0.05)
    elif "softmax" in change[-1]:
        assert changed["loss"] > plain["loss"]  # cross-entropy is added, and is above 0
    else:
        assert changed["loss"] != plain["loss"]
