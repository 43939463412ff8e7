"""The paper's figures: that their curves are what the package's formulas decide and push."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

import paper_figures
from glyphs.data import ClassSplit
from paper import curves, planes
from paper.trainings import SCHEDULE, Setting, scatter, sweep_settings, trained

from circle_kernels import CircleFormula, UnifiedFormula


def _decision(formula: CircleFormula | UnifiedFormula, s_n: float, s_p: float) -> float:
    pair = (torch.tensor(each, dtype=torch.float64) for each in (s_n, s_p))
    return float(planes.decision(formula, *pair))


@pytest.mark.parametrize("m", [0.1, 0.25, 0.4])
def test_boundary_of_circle_loss_is_a_circle(m: float) -> None:
    """Eq. 8: around (0, 1) with the radius sqrt(2) m."""
    formula = CircleFormula(m=m, gamma=64.0)
    for angle in torch.linspace(-math.pi / 2, 0, 7).tolist():
        s_n, s_p = (math.sqrt(2) * m * each for each in (math.cos(angle), math.sin(angle)))
        assert _decision(formula, s_n, 1 + s_p) == pytest.approx(0, abs=1e-12)
        assert _decision(formula, 1.1 * s_n, 1 + 1.1 * s_p) > 0


def test_boundaries_of_figure_5_touch() -> None:
    """sqrt(2) 0.325 = (1 - 0.35) / sqrt(2): at the point (0.325, 0.675), where both agree."""
    straight, circle = UnifiedFormula(m=0.35, gamma=1.0), CircleFormula(m=0.325, gamma=1.0)
    touching = (0.325, 0.675)
    for formula in (straight, circle):
        assert _decision(formula, *touching) == pytest.approx(0, abs=1e-12)
    assert math.sqrt(2) * 0.325 == pytest.approx((1 - 0.35) / math.sqrt(2))
    for along in (-0.05, 0.05):
        on_the_line = (touching[0] + along, touching[1] + along)
        assert _decision(straight, *on_the_line) == pytest.approx(0, abs=1e-12)
        assert _decision(circle, *on_the_line) > 0


def test_gradients_at_a_are_those_of_the_paper() -> None:
    """Equal for triplet loss and AM-Softmax; circle loss leaves s_p = 0.8 and pushes s_n = 0.8."""
    at_a = [torch.tensor([each], dtype=torch.float64) for each in planes.POINT_A]
    found = {
        name.split(" ")[0]: [float(each) for each in planes.gradients(formula, *at_a)]
        for name, formula in planes.LOSSES.items()
    }
    assert found["triplet"] == [1, 1]
    assert found["AM-Softmax"] == pytest.approx([64, 64], rel=1e-6)
    # Eq. 9 and 10 where the loss is large: gamma [s_n + m] and gamma [1 + m - s_p].
    assert found["circle"] == pytest.approx([256 * (0.8 + 0.25), 256 * (1.25 - 0.8)], rel=1e-6)


def test_sweep_has_the_scales_and_margins_of_figure_3() -> None:
    settings = sweep_settings()
    assert len(settings) == len(set(settings)) == 6 + 6 + 3 + 11 - 1
    margins = [each.m for each in settings if each.loss == "circle" and each.gamma == 256]
    assert sorted(margins) == [round(-0.2 + 0.05 * step, 2) for step in range(11)]


def test_training_moves_similarities_apart(small_split: ClassSplit) -> None:
    schedule = SCHEDULE.__class__(steps=25, learning_rate=5e-3, classes_per_batch=30)
    setting = Setting("circle", 0.25, 64.0)
    _, criterion = trained(setting, small_split, schedule)
    first, last = criterion.means[0], criterion.means[-1]
    assert last[0] - last[1] > first[0] - first[1] + 0.1
    s_n, s_p = scatter(setting, small_split, schedule)
    pictures = small_split.train.pictures
    assert len(s_n) == len(s_p) == pictures.shape[0] * pictures.shape[1]
    assert float((s_p - s_n).mean()) > first[0] - first[1]


def test_program_draws_all_figures_and_figure_3_again(tmp_path: Path) -> None:
    paper_figures.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert len(rows) == len(sweep_settings())
    assert curves.values_of(rows, Setting("ArcFace", 0.5, 64.0), "recall@1").shape == (1,)
    again = tmp_path / "again"
    paper_figures.main(
        ["--figures", "3", "--out", str(again), "--from-results", str(tmp_path / "sweep.json")]
    )
    assert (again / "figure_3.png").read_bytes() == (tmp_path / "figure_3.png").read_bytes()
    for number in range(1, 6):
        assert (tmp_path / f"figure_{number}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "argument --seeds: must be at least 1, got 0"),
        (["--figures", "6"], "invalid choice: 6"),
        (["--from-results", "nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        paper_figures.parse_arguments(arguments)
    assert message in capsys.readouterr().err
