"""The glyph classification example: its class weights, its search, a short run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.examples.programs  # noqa: F401  # isort: skip

import glyph_classification
from glyph_classification import LOSSES
from glyphs import data, report, training
from glyphs.evaluation import AllPairs
from rich.console import Console

SHORT = training.Schedule(
    steps=3, learning_rate=2e-3, class_learning_rate=1e-3, classes_per_batch=8, pictures_per_class=2
)


@pytest.mark.parametrize("name", LOSSES)
def test_class_weights_are_trained_at_their_own_rate(
    name: str, small_split: data.ClassSplit
) -> None:
    def moved_by(rate: float) -> float:
        torch.manual_seed(0)
        criterion = LOSSES[name](len(small_split.train.characters), 128)
        before = next(criterion.parameters()).detach().clone()
        schedule = replace(SHORT, class_learning_rate=rate)
        training.train(training.new_network(0), small_split, schedule, criterion, validations=1)
        return (next(criterion.parameters()).detach() - before).abs().max().item()

    moved = moved_by(1e-3)
    assert 1e-3 < moved < 4e-3  # Adam moves a weight by about its rate, in each of three steps
    assert moved_by(1e-6) == pytest.approx(1e-3 * moved, rel=0.1)


def test_run_repeats_and_every_loss_sees_the_same_batches(
    small_split: data.ClassSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    results: list[np.ndarray] = []
    draw = training.pk_batch

    def spy(*arguments: object) -> tuple[Tensor, Tensor]:
        images, labels = draw(*arguments)
        seen.append((hash(images.numpy().tobytes()), *labels.tolist()))
        return images, labels

    def keep(path: Path, pairs: Mapping[str, AllPairs], *_: object) -> None:
        results.extend(pairs_of_loss.positives for pairs_of_loss in pairs.values())

    monkeypatch.setattr(training, "pk_batch", spy)
    monkeypatch.setattr(glyph_classification, "save_verification_figure", keep)
    schedules = dict.fromkeys(LOSSES, SHORT)
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        glyph_classification.run(schedules, small_split, tmp_path, Console(file=io.StringIO()))
    assert len(seen) == 2 * 3 * SHORT.steps
    assert len(set(seen)) == SHORT.steps
    for first, second in zip(results[:3], results[3:], strict=True):
        np.testing.assert_array_equal(first, second)


def test_search_tries_the_same_rates_for_every_loss_without_the_test_classes(
    small_split: data.ClassSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyph_classification, "CANDIDATES", (1e-3, 1e-2))
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    glyph_classification.choose(SHORT, replace(small_split, test=None), console)
    lines = printed.getvalue().splitlines()
    for name in LOSSES:
        assert sum(line.startswith(f"│ {name} ") for line in lines) == 2
        assert sum(line.startswith(f"Chosen for {name}:") for line in lines) == 1


def test_rate_that_cannot_be_resolved_is_not_given_a_number() -> None:
    pairs = AllPairs(np.array([0.2, 0.5, 0.7, 0.9]), np.array([0.1, 0.3, 0.6, 0.6, 0.8]))
    row = report.VerificationRow("some loss", torch.tensor([0.5, 1.0]), pairs, recall_at_1=0.25)
    printed = io.StringIO()
    table = report.verification_table("title", [row], (0.2, 0.1))
    Console(file=printed, width=100).print(table)
    (line,) = [line for line in printed.getvalue().splitlines() if "some loss" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["some loss", "", "75.0 ± 35.4", "0.500", "n/a", "0.250"]
    note = report.resolution_note(pairs, (0.2, 0.1))
    assert "1 at 2e-1, 0 at 1e-1; no FAR below 2e-1" in note


def test_quick_run_prints_its_table_and_writes_its_figure(
    glyphs: data.GlyphSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(glyph_classification, "render_glyphs", lambda: glyphs)
    monkeypatch.setattr(glyph_classification, "QUICK_STEPS", 2)
    folder = tmp_path / "new" / "folder"
    glyph_classification.main(["--quick", "--out", str(folder)])
    assert (folder / "glyph_classification.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr()
    for expected in ("raw pixels", *LOSSES, "accuracy", "@1e-3"):
        assert expected in output.out
    for name in LOSSES:
        assert f"{name}: 100%" in output.err
