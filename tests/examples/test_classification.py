"""The glyph classification example: verification metrics, learning rates, a short run."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import tests.examples.programs  # noqa: F401  # isort: skip

import glyph_classification
import numpy as np
import pytest
import torch
from glyph_classification import LOSSES
from glyphs import data, rate_search, report, training
from glyphs.metrics import RetrievalMetrics
from glyphs.verification import (
    Roc,
    Verification,
    all_pairs,
    best_threshold,
    draw_pairs,
    k_fold_accuracies,
    verify,
)
from rich.console import Console
from torch import Tensor

SHORT = training.Schedule(
    steps=3, learning_rate=2e-3, class_learning_rate=1e-3, classes_per_batch=8, pictures_per_class=2
)


@pytest.fixture(scope="module")
def split() -> data.ClassSplit:
    return data.split_classes(data.render_glyphs().select(torch.arange(60)))


def coarse_scores(seed: int, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Similarities with many ties, larger on average where the pair is positive."""
    generator = np.random.default_rng(seed)
    same = generator.random(size) < 0.4
    return np.round(generator.normal(0.3 * same, 0.3), 1), same


# Accuracy on folds


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([0.8, 0.2, 0.6, 0.1], [True, False, True, False], 0.4),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, True, True], 0.15),
        ([0.1, 0.3, 0.3, 0.9], [False, True, False, True], 0.2),
        ([0.1, 0.2], [True, True], -math.inf),
        ([0.1, 0.2], [False, False], 0.2),
        ([1.0, np.nextafter(1.0, 2.0)], [False, True], 1.0),
    ],
    ids=["separable", "lowest of two", "tie", "accept all", "refuse all", "neighbouring floats"],
)
def test_best_threshold(scores: list[float], same: list[bool], expected: float) -> None:
    assert best_threshold(np.array(scores), np.array(same)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_beats_the_best(seed: int) -> None:
    scores, same = coarse_scores(seed)
    accuracies = [((scores > other) == same).mean() for other in [-math.inf, *scores]]
    best = ((scores > best_threshold(scores, same)) == same).mean()
    assert best == max(accuracies) > same.mean()


def test_threshold_of_a_fold_comes_from_the_others() -> None:
    scores = np.array([0.1, 0.3, 0.4, 0.6])
    same = np.array([False, True, False, True])
    fold = np.array([0, 0, 1, 1])
    # Thresholds 0.5 for fold 0, which refuses its positive, and 0.2 for fold 1.
    assert k_fold_accuracies(scores, same, fold).tolist() == [0.5, 0.5]


def test_k_fold_accuracies_equal_a_loop_over_folds_and_thresholds() -> None:
    scores, same = coarse_scores(7)
    fold = np.arange(len(scores)) % 4
    expected = []
    for held_out in range(4):
        inside, outside = fold == held_out, fold != held_out
        thresholds = [-math.inf, *np.unique(scores)]
        hits = [((scores[outside] > t) == same[outside]).sum() for t in thresholds]
        threshold = thresholds[int(np.argmax(hits))]
        expected.append(((scores[inside] > threshold) == same[inside]).mean())
    assert k_fold_accuracies(scores, same, fold) == pytest.approx(expected)


def test_folds_share_no_class_and_hold_every_positive_pair_of_theirs() -> None:
    labels = torch.arange(-7, 13).repeat(3)
    pairs = draw_pairs(labels, torch.Generator().manual_seed(0), folds=5)
    first, second = labels[pairs.first], labels[pairs.second]
    assert (pairs.first < pairs.second).all()
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == len(first)
    np.testing.assert_array_equal(pairs.same, (first == second).numpy())
    classes = [
        set(torch.cat([first, second])[np.tile(pairs.fold == f, 2)].tolist()) for f in range(5)
    ]
    assert sum(map(len, classes)) == len(set.union(*classes)) == 20
    for fold in range(5):
        in_fold = pairs.same[pairs.fold == fold]
        assert (in_fold.sum(), (~in_fold).sum()) == (4 * 3, 4 * 3)


def test_pairs_depend_on_the_generator_only() -> None:
    labels = torch.arange(20).repeat_interleave(3)
    draws = [draw_pairs(labels, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0].second, draws[1].second)
    assert not torch.equal(draws[0].second, draws[2].second)


@pytest.mark.parametrize("labels", [torch.arange(40), torch.arange(10).repeat_interleave(3)])
def test_fold_without_enough_pairs_is_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must give each of 10 folds a positive pair"):
        draw_pairs(labels, torch.Generator().manual_seed(0))


# TAR@FAR


HAND = Roc(np.array([0.2, 0.5, 0.7, 0.9]), np.array([0.1, 0.3, 0.6, 0.6, 0.8]))


@pytest.mark.parametrize(
    ("far", "tar"),
    [(0.19, math.nan), (0.2, 0.5), (0.4, 0.5), (0.6, 0.75), (0.8, 1.0), (1.0, 1.0)],
)
def test_tar_at_far_by_hand(far: float, tar: float) -> None:
    assert HAND.tar_at_far(far) == pytest.approx(tar, nan_ok=True)


def test_tied_negatives_are_not_split() -> None:
    # One accepted of the two negatives at 0.6 would accept the other, and the positive below 0.8.
    tied = Roc(np.array([0.6, 0.6, 0.7]), np.array([0.1, 0.6, 0.6, 0.8]))
    assert tied.tar_at_far(0.25) == tied.tar_at_far(0.5) == pytest.approx(1 / 3)
    assert tied.tar_at_far(0.75) == 1.0


@pytest.mark.parametrize(
    ("far", "negatives", "expected"),
    [
        (0.29, 100, 29),  # 0.29 * 100 is below 29
        (math.nextafter(0.07, 0), 100, 6),  # times 100 it is 7
        (1e-3, 999, 0),
        (1e-3, 1000, 1),
        (1e-4, 26_484_624, 2648),
        (1.0, 5, 5),
    ],
)
def test_allowed_false_accepts(far: float, negatives: int, expected: int) -> None:
    roc = Roc(np.zeros(1), np.zeros(negatives))
    assert roc.allowed_false_accepts(far) == expected


@pytest.mark.parametrize("seed", range(5))
def test_tar_at_far_equals_that_of_scikit_learn(seed: int) -> None:
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    scores, same = coarse_scores(seed)
    roc = Roc(np.sort(scores[same]), np.sort(scores[~same]))
    fars, tars, _ = roc_curve(same, scores, drop_intermediate=False)
    for far in (1 / (~same).sum(), 0.01, 0.05, 0.1, 0.5, 1.0):
        assert roc.tar_at_far(far) == pytest.approx(tars[fars <= far].max())
    for far, tar in zip(*roc.curve(points=50), strict=True):
        assert tar == pytest.approx(tars[fars <= far].max())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_all_pairs_are_each_unordered_pair_once(chunk: int) -> None:
    generator = torch.Generator().manual_seed(chunk)
    embeddings = torch.randn(23, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-2, 3, (23,), generator=generator)
    roc = all_pairs(embeddings, labels, chunk=chunk)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for i in range(23):
        for j in range(i):
            cosine = torch.cosine_similarity(embeddings[i], embeddings[j], dim=0).item()
            expected[bool(labels[i] == labels[j])].append(cosine)
    assert roc.positives == pytest.approx(sorted(expected[True]))
    assert roc.negatives == pytest.approx(sorted(expected[False]))


def test_separated_classes_are_verified_without_error() -> None:
    labels = torch.arange(20).repeat_interleave(3)
    pairs = draw_pairs(labels, torch.Generator().manual_seed(0), folds=5)
    result = verify(torch.eye(20)[labels], labels, pairs)
    assert result.accuracies.tolist() == [1.0] * 5
    fars, tars = result.roc.curve()
    assert (fars[0], fars[-1]) == (1 / len(result.roc.negatives), 1.0)
    assert tars.min() == 1.0


def test_random_embeddings_are_verified_by_chance() -> None:
    labels = torch.arange(100).repeat_interleave(5)
    embeddings = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    result = verify(embeddings, labels, draw_pairs(labels, torch.Generator().manual_seed(0)))
    assert abs(result.accuracies.mean() - 0.5) < 0.05
    assert abs(result.roc.tar_at_far(0.1) - 0.1) < 0.05


def test_pairs_without_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        all_pairs(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 0]))
    for labels in (torch.arange(3), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a class with two embeddings, and two classes"):
            all_pairs(torch.randn(3, 2), labels)


# Training


@pytest.mark.parametrize("name", LOSSES)
def test_class_weights_are_trained_at_their_own_rate(name: str, split: data.ClassSplit) -> None:
    def class_weights(rate: float) -> Tensor:
        torch.manual_seed(0)
        criterion = LOSSES[name](len(split.train.characters), 128)
        before = next(criterion.parameters()).detach().clone()
        training.train(
            training.new_network(0),
            split.train,
            split.validation,
            replace(SHORT, class_learning_rate=rate),
            criterion,
            validations=1,
        )
        return next(criterion.parameters()).detach() - before

    moved = class_weights(1e-3).abs().max().item()
    assert 1e-3 < moved < 4e-3  # Adam moves a weight by about its rate, in each of three steps
    assert class_weights(1e-6).abs().max().item() == pytest.approx(1e-3 * moved, rel=0.1)


def test_run_repeats_and_every_loss_sees_the_same_batches(
    split: data.ClassSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    results: list[np.ndarray] = []
    draw = training.pk_batch

    def spy(*arguments: object) -> tuple[Tensor, Tensor]:
        images, labels = draw(*arguments)
        seen.append((hash(images.numpy().tobytes()), *labels.tolist()))
        return images, labels

    def keep(path: Path, curves: dict[str, Roc], *_: object) -> None:
        results.extend(roc.positives for roc in curves.values())

    monkeypatch.setattr(training, "pk_batch", spy)
    monkeypatch.setattr(glyph_classification, "save_figure", keep)
    schedules = dict.fromkeys(LOSSES, SHORT)
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        glyph_classification.run(schedules, split, tmp_path, Console(file=io.StringIO()))
    assert len(seen) == 2 * 3 * SHORT.steps
    assert len(set(seen)) == SHORT.steps
    for first, second in zip(results[:3], results[3:], strict=True):
        np.testing.assert_array_equal(first, second)


def test_search_tries_the_same_rates_for_every_loss_without_the_test_classes(
    split: data.ClassSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_search, "CANDIDATES", (1e-3, 1e-2))
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    glyph_classification.choose(SHORT, replace(split, test=None), console)
    lines = printed.getvalue().splitlines()
    for name in LOSSES:
        assert sum(line.startswith(f"│ {name} ") for line in lines) == 2
        assert sum(line.startswith(f"Chosen for {name}:") for line in lines) == 1


# Tables and command line


def test_rate_that_cannot_be_resolved_is_not_given_a_number() -> None:
    row = report.VerificationRow(
        "some loss", Verification(np.array([0.5, 1.0]), HAND), RetrievalMetrics(0.25, 0.0, 0.0)
    )
    printed = io.StringIO()
    table = report.verification_table("title", [row], (0.2, 0.1))
    Console(file=printed, width=100).print(table)
    (line,) = [line for line in printed.getvalue().splitlines() if "some loss" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["some loss", "", "75.0 ± 35.4", "0.500", "n/a", "0.250"]
    note = report.resolution_note(HAND, (0.2, 0.1))
    assert "1 at 2e-1, 0 at 1e-1; no FAR below 2e-1" in note


def test_quick_run_prints_its_table_and_writes_its_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "new" / "folder"
    glyph_classification.main(["--quick", "--out", str(folder)])
    assert (folder / "glyph_classification.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr()
    for expected in ("raw pixels", *LOSSES, "accuracy", "@1e-3"):
        assert expected in output.out
    for name in LOSSES:
        assert f"{name}: 100%" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--pictures-per-class", "0"], "the loss takes at least 1 and a class has 12, got 0"),
        (["--seed", "-1"], "--seed: must be in 0 to"),
        (["--out", __file__], "is not a folder"),
    ],
)
def test_bad_argument_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        glyph_classification.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_batch_of_more_classes_than_there_are_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--classes-per-batch must be at most 5\d\d, the"):
        glyph_classification.main(["--classes-per-batch", "5000"])
