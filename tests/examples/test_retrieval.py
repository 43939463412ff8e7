"""The glyph retrieval example: training with one loss beside another, its search, short runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

import tests.examples.programs  # noqa: F401  # isort: skip

import glyph_retrieval
from glyphs import data, figures, report, training
from rich.console import Console

from circle_kernels import CircleLoss

SHORT = glyph_retrieval.Settings(
    m=0.25, gamma=32.0, steps=5, learning_rate=2e-3, classes_per_batch=8, pictures_per_class=3
)


def short_run(split: data.ClassSplit, **losses: CircleLoss) -> tuple[dict, training.History]:
    network = training.new_network(SHORT.seed)
    history = training.train(network, split, SHORT, validations=1, **losses)
    return network.state_dict(), history


def test_compared_loss_agrees_and_leaves_the_run_as_it_is(small_split: data.ClassSplit) -> None:
    naive = CircleLoss(m=0.25, gamma=32, backend="reference")
    fused = CircleLoss(m=0.25, gamma=32)
    alone, _ = short_run(small_split, criterion=naive)
    weights, history = short_run(small_split, criterion=naive, compared=fused)
    for name, weight in weights.items():
        assert weight.equal(alone[name])
    assert len(history.steps) == SHORT.steps
    assert max(step.compared.loss_difference for step in history.steps) < 1e-5
    assert max(step.compared.gradient_difference for step in history.steps) < 1e-4


def test_difference_between_the_losses_would_be_seen(small_split: data.ClassSplit) -> None:
    _, history = short_run(
        small_split,
        criterion=CircleLoss(m=0.25, gamma=32, backend="reference"),
        compared=CircleLoss(m=0.25, gamma=33),
    )
    assert min(step.compared.loss_difference for step in history.steps) > 1e-3
    assert min(step.compared.gradient_difference for step in history.steps) > 1e-3


@pytest.mark.parametrize("loss", ["fused", "naive"])
def test_short_run_prints_its_tables_and_writes_its_figure(
    loss: str, small_split: data.ClassSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "QUERIES", 2)  # a figure of fewer axes is drawn faster
    monkeypatch.setattr(figures, "NEIGHBORS", 2)
    backends = []

    def spy(*arguments: object, compared: CircleLoss | None, **options: object) -> training.History:
        backends.append((arguments[3].backend, compared and compared.backend))
        return training.train(*arguments, compared=compared, **options)

    monkeypatch.setattr(glyph_retrieval, "train", spy)
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    path = glyph_retrieval.run(SHORT, loss, small_split, tmp_path / "new" / "folder", console)
    assert path.read_bytes().startswith(b"\x89PNG")
    text = printed.getvalue()
    for expected in ("raw pixels", "untrained", f"{loss} circle loss", "MAP@R", "share of step"):
        assert expected in text
    assert f"{loss} (drove the training)" in text
    assert ("gradient differs by" in text) == (loss == "naive")
    assert backends == [("reference", "auto") if loss == "naive" else ("auto", None)]


def test_agreement_table_covers_every_step() -> None:
    same = training.Comparison(1.0, 1.0, loss_difference=0.0, gradient_difference=0.0)
    steps = [training.Step(1.0, 1.0, 1.0, same) for _ in range(10)]
    steps[6] = replace(steps[6], compared=replace(same, gradient_difference=0.5))
    printed = io.StringIO()
    table = report.agreement_table(steps, "naive", "fused", rows=4)
    Console(file=printed, width=100).print(table)
    lines = printed.getvalue().splitlines()
    for part in ("1 to 3", "4 to 6", "7 to 9", "10 to 10"):
        (line,) = [line for line in lines if part in line]
        assert ("5.0e-01" in line) == (part == "7 to 9")
    assert "5.0e-01" in lines[-2]


def test_search_takes_the_best_of_each_stage() -> None:
    tried = []

    def score(settings: glyph_retrieval.Settings, split: None) -> dict[str, float]:
        tried.append(settings)
        distance = abs(settings.m - 0.4) + abs(settings.gamma - 16) + abs(settings.steps - 600)
        map_at_r = -distance - abs(settings.learning_rate - 4e-3)
        return {"recall@1": 0.0, "r_precision": 0.0, "map@r": map_at_r}

    printed = io.StringIO()
    glyph_retrieval.choose(None, Console(file=printed, width=100), 7, score)
    assert "Chosen by MAP@R: m=0.4 gamma=16 steps=600 learning rate=0.004" in printed.getvalue()
    assert len(tried) == len(set(tried)) == 12
    assert {settings.seed for settings in tried} == {7}
    assert sum(line.startswith("│") for line in printed.getvalue().splitlines()) == 12


def test_search_does_not_look_at_the_test_classes(small_split: data.ClassSplit) -> None:
    without_test = replace(small_split, test=None)
    assert glyph_retrieval.validation_metrics(SHORT, without_test)["recall@1"] > 0
