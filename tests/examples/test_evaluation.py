"""What the glyph examples measure, against definitions and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.examples.programs  # noqa: F401  # isort: skip

from glyphs import network
from glyphs.evaluation import AllPairs, Pairs, all_pairs, draw_pairs
from sklearn.metrics import roc_curve


def test_embeddings_of_a_run_that_diverged_are_refused() -> None:
    diverged = network.GlyphNetwork()
    torch.nn.init.constant_(diverged.embed.bias, math.nan)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        network.embed(diverged, torch.zeros(2, 1, 32, 32))


# Accuracy on folds


def unit_vectors(cosines: np.ndarray) -> Tensor:
    """A vector with each cosine, before them the one that they are measured from."""
    cosines = torch.tensor([1.0, *cosines], dtype=torch.float64)
    return torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)


def accuracies(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> list[float]:
    second = torch.arange(len(scores)) + 1
    pairs = Pairs(torch.zeros_like(second), second, torch.tensor(same), torch.tensor(fold))
    return pairs.accuracies(unit_vectors(scores)).tolist()


def coarse_scores(seed: int, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Similarities with many ties, larger on average where the pair is positive, as every other."""
    same = np.arange(size) % 2 == 0
    scores = np.random.default_rng(seed).normal(0.3 * same, 0.3)
    return np.round(scores, 1).clip(-1, 1), same


def test_threshold_of_a_fold_comes_from_the_others() -> None:
    scores, same = [0.1, 0.3, 0.4, 0.6], [False, True, False, True]
    # Thresholds 0.6 for fold 0, which refuses its positive, and 0.3 for fold 1.
    assert accuracies(scores, same, [0, 0, 1, 1]) == [0.5, 0.5]


@pytest.mark.parametrize("scores", [[0.5] * 4, [0.6, 0.2, 0.6, 0.2]], ids=["ties", "reversed"])
def test_where_nothing_separates_the_pairs_half_are_right(scores: list[float]) -> None:
    assert accuracies(scores, [False, True] * 2, [0, 0, 1, 1]) == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_a_loop_over_folds_and_thresholds(seed: int) -> None:
    scores, same = coarse_scores(seed)
    fold = np.arange(len(scores)) // 2 % 4
    cosines = torch.cosine_similarity(unit_vectors(scores)[:1], unit_vectors(scores)[1:]).numpy()
    results = accuracies(scores, same, fold)
    for held_out in range(4):
        inside, outside = fold == held_out, fold != held_out
        thresholds = [math.inf, *np.unique(cosines)[::-1]]
        hits = np.array([((cosines[outside] >= t) == same[outside]).sum() for t in thresholds])
        accepted = cosines[inside] >= thresholds[hits.argmax()]  # the highest of the best
        assert results[held_out] == (accepted == same[inside]).mean()


def test_folds_share_no_class_and_hold_every_positive_pair_of_theirs() -> None:
    labels = torch.arange(20).repeat(3)
    pairs = draw_pairs(labels, torch.Generator().manual_seed(0), folds=5)
    first, second = labels[pairs.first], labels[pairs.second]
    assert (pairs.first < pairs.second).all()
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == len(first)
    assert torch.equal(pairs.same, first == second)
    classes = [
        set(torch.cat([first, second])[(pairs.fold == f).repeat(2)].tolist()) for f in range(5)
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


# TAR@FAR


HAND = AllPairs(np.array([0.9, 0.2, 0.7, 0.5]), np.array([0.6, 0.1, 0.8, 0.3, 0.6]))


@pytest.mark.parametrize(
    ("far", "tar"), [(0.19, math.nan), (0.2, 0.5), (0.4, 0.5), (0.6, 0.75), (0.8, 1.0), (1.0, 1.0)]
)
def test_tar_at_far_by_hand(far: float, tar: float) -> None:
    assert HAND.tars([far]) == pytest.approx([tar], nan_ok=True)


def test_tied_negatives_are_not_split() -> None:
    # One accepted of the two negatives at 0.6 would accept the other, and the positive below 0.8.
    tied = AllPairs(np.array([0.6, 0.6, 0.7]), np.array([0.1, 0.6, 0.6, 0.8]))
    assert tied.tars([0.25, 0.5, 0.75]) == pytest.approx([1 / 3, 1 / 3, 1.0])


def test_rates_of_millions_of_pairs_are_exact_in_single_precision() -> None:
    negatives = np.arange(2**24, dtype=np.float32) / 2**24
    pairs = AllPairs(np.zeros(1, np.float32), negatives)
    fars = (1e-2, 1e-3, 1e-4, 3e-5)
    accepted = [np.count_nonzero(negatives > threshold) for threshold in pairs.thresholds(fars)]
    assert accepted == [pairs.false_accepts(far) for far in fars] == [167_772, 16_777, 1677, 503]


@pytest.mark.parametrize("seed", range(3))
def test_tar_at_far_equals_that_of_scikit_learn(seed: int) -> None:
    scores, same = coarse_scores(seed)
    expected_fars, expected_tars, _ = roc_curve(same, scores, drop_intermediate=False)
    fars = np.array([1 / (~same).sum(), 0.015, 0.05, 0.1, 0.5])
    expected = [expected_tars[expected_fars <= far].max() for far in fars]
    assert AllPairs(scores[same], scores[~same]).tars(fars) == pytest.approx(expected)


def test_all_pairs_are_each_unordered_pair_once() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(23, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (23,), generator=generator)
    pairs = all_pairs(embeddings, labels)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for i in range(23):
        for j in range(i):
            cosine = torch.cosine_similarity(embeddings[i], embeddings[j], dim=0).item()
            expected[bool(labels[i] == labels[j])].append(cosine)
    assert sorted(pairs.positives) == pytest.approx(sorted(expected[True]))
    assert sorted(pairs.negatives) == pytest.approx(sorted(expected[False]))


def test_separated_classes_are_verified_without_error() -> None:
    labels = torch.arange(20).repeat_interleave(3)
    embeddings = torch.eye(20)[labels]
    pairs = draw_pairs(labels, torch.Generator().manual_seed(0), folds=5)
    assert pairs.accuracies(embeddings).tolist() == [1.0] * 5
    assert all_pairs(embeddings, labels).tars([1e-3, 0.1, 1.0]).tolist() == [1.0] * 3


def test_random_embeddings_are_verified_by_chance() -> None:
    labels = torch.arange(100).repeat_interleave(5)
    embeddings = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    pairs = draw_pairs(labels, torch.Generator().manual_seed(0))
    assert abs(pairs.accuracies(embeddings).mean() - 0.5) < 0.05
    assert abs(all_pairs(embeddings, labels).tars([0.1])[0] - 0.1) < 0.05
