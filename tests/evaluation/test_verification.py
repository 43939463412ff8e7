"""Verification of listed pairs: brute force and scikit-learn's ROC curve agree."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold
from torch import Tensor

from circle_kernels.evaluation.verification import (
    all_pairs_tar_at_far,
    tar_at_far,
    verification_accuracy,
)

FARS = (0.0, 1e-9, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.999, 1.0)


def _pairs(seed: int, count: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities, with ``levels`` of so many values alone, and which pairs are positive."""
    generator = torch.Generator().manual_seed(seed)
    same = torch.rand(count, generator=generator) < 0.4
    same[:2] = torch.tensor([True, False])
    similarity = torch.randn(count, generator=generator, dtype=torch.float64) + same
    return (similarity * levels).round() if levels else similarity, same


PAIRS = {
    "distinct": _pairs(0, 400),
    "ties": _pairs(1, 400, levels=2),
    "two pairs": (torch.tensor([0.5, 0.5]), torch.tensor([True, False])),
    "all equal": (torch.zeros(20), torch.arange(20) < 7),
    "separable": (torch.arange(20.0), torch.arange(20) >= 10),
    "upside down": (torch.arange(20.0), torch.arange(20) < 10),
    "infinitely close": (1 + torch.arange(9) * 2.0**-52, torch.arange(9) % 2 == 0),
}


def by_roc_curve(similarity: Tensor, same: Tensor, fars: Any) -> dict[float, float]:
    """The definition: of all thresholds with a FAR of at most the one given the largest TAR."""
    fpr, tpr, _ = roc_curve(same.numpy(), similarity.numpy(), drop_intermediate=False)
    return {far: tpr[fpr <= far].max() for far in fars}


@pytest.mark.parametrize("name", PAIRS)
def test_rates_are_those_of_the_roc_curve(name: str) -> None:
    similarity, same = PAIRS[name]
    expected = by_roc_curve(similarity, same, FARS)
    assert tar_at_far(similarity, same, FARS) == pytest.approx(expected, rel=0, abs=1e-12)


def test_far_that_a_count_divided_gives_allows_that_count() -> None:
    """Products of rates and counts may be just below the integer."""
    for negatives in range(1, 60):
        similarity = -torch.arange(2.0 * negatives)  # after each negative a positive
        same = torch.arange(2 * negatives) % 2 == 1
        fars = [count / negatives for count in range(negatives + 1)]
        expected = [count / negatives for count in range(negatives)] + [1.0]
        assert list(tar_at_far(similarity, same, fars).values()) == expected


def test_where_no_negative_is_allowed_those_above_all_negatives_are_accepted() -> None:
    similarity, same = torch.tensor([3.0, 2, 2, 1, 0]), torch.tensor([1, 1, 0, 1, 0]).bool()
    assert tar_at_far(similarity, same, (0, 0.49)) == {0.0: 1 / 3, 0.49: 1 / 3}
    assert tar_at_far(similarity, same, (0.5,)) == {0.5: 1.0}
    assert tar_at_far(similarity[1:], same[1:], np.array([0.1])) == {0.1: 0.0}
    assert tar_at_far(similarity, same, ()) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_similarities_of_narrow_dtypes_tie_as_they_are(dtype: torch.dtype) -> None:
    similarity, same = PAIRS["distinct"]
    narrow = similarity.to(dtype)
    expected = by_roc_curve(narrow.double(), same, FARS)
    assert tar_at_far(narrow, same, FARS) == pytest.approx(expected, rel=0, abs=1e-12)
    found = verification_accuracy(narrow, same)
    assert torch.equal(found.thresholds, verification_accuracy(narrow.double(), same).thresholds)


@pytest.mark.parametrize("folds", [2, 3, 10])
@pytest.mark.parametrize("name", PAIRS)
def test_accuracy_is_that_of_every_threshold_tried(name: str, folds: int) -> None:
    similarity, same = PAIRS[name]
    folds = min(folds, len(same))
    thresholds, accuracies = [], []
    for others, held_out in KFold(folds).split(similarity):

        def right(threshold: float, places: np.ndarray) -> Fraction:
            accepted = similarity[places] >= threshold
            return Fraction(int((accepted == same[places]).sum()), len(places))

        candidates = [math.inf, *similarity[others].tolist()]
        most = max(right(each, others) for each in candidates)
        thresholds.append(max(each for each in candidates if right(each, others) == most))
        accuracies.append(float(right(thresholds[-1], held_out)))
    found = verification_accuracy(similarity, same, folds)
    assert found.thresholds.tolist() == thresholds
    assert found.per_fold.tolist() == pytest.approx(accuracies, rel=0, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(accuracies), rel=0, abs=1e-12)
    assert found.std == pytest.approx(np.std(accuracies), rel=0, abs=1e-12)


def test_folds_may_be_given_pair_by_pair() -> None:
    numbers = torch.tensor([7, 7, -1, -1, 7, 7, -1])
    order = numbers.argsort(stable=True)
    similarity = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.4, 0.8, 0.6], dtype=torch.float64)
    same = torch.tensor([False, True, True, False, True, True, False])
    mixed = verification_accuracy(similarity, same, numbers)
    # Two runs of three and four.
    runs = verification_accuracy(similarity[order.flip(0)], same[order.flip(0)], 2)
    assert torch.equal(mixed.per_fold, runs.per_fold.flip(0))
    assert torch.equal(mixed.thresholds, runs.thresholds.flip(0))
    with pytest.raises(ValueError, match="folds must have at least 2 different numbers, got 1"):
        verification_accuracy(similarity, same, torch.ones(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="folds must have one"):
        verification_accuracy(similarity, same, numbers[:3])


def test_folds_are_runs_of_the_pairs_as_they_came() -> None:
    """The last of ten folds is told wrong, whatever the others look like."""
    same = torch.arange(60) % 2 == 0
    similarity = same.float()
    similarity[-6:] = 1 - similarity[-6:]
    assert verification_accuracy(similarity, same).per_fold.tolist() == [1.0] * 9 + [0.0]


S, SAME = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, False, True])
WRONG_PAIRS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "list": ([0.9, 0.1, 0.5], SAME, TypeError, "similarity must be a floating-point tensor"),
    "integers": (S.long(), SAME, TypeError, "similarity must be a floating-point tensor"),
    "numbers": (S, SAME.long(), TypeError, "same must be a boolean tensor"),
    "matrix": (S[:, None], SAME, ValueError, r"similarity must have shape \(pairs,\)"),
    "lengths": (S, SAME[:2], ValueError, r"same must have one .* wanted shape \(3,\), got \(2,\)"),
    "NaN": (S / torch.tensor([1, 0, 1]) * 0, SAME, ValueError, "similarity must be .* nan at 1"),
    "infinity": (S / torch.tensor([1, 1, 0]), SAME, ValueError, "similarity must be .* inf at 2"),
    "all positive": (S, SAME | True, ValueError, "same must .* got 3 of one class and 0 of two"),
    "all negative": (S, SAME & False, ValueError, "same must .* got 0 of one class and 3 of two"),
    "none": (S[:0], SAME[:0], ValueError, "same must .* got 0 of one class and 0 of two"),
}


@pytest.mark.parametrize("name", WRONG_PAIRS)
def test_wrong_pairs_are_named(name: str) -> None:
    similarity, same, kind, message = WRONG_PAIRS[name]
    with pytest.raises(kind, match=message):
        tar_at_far(similarity, same, (0.1,))
    with pytest.raises(kind, match=message):
        verification_accuracy(similarity, same, 2)


@pytest.mark.parametrize(
    ("fars", "kind", "message"),
    [
        (0.1, TypeError, r"fars must be a sequence of rates in \[0, 1\], got float 0.1"),
        ("0.1", TypeError, "fars must be a sequence"),
        (torch.tensor(0.1), ValueError, r"fars must have shape \(rates,\)"),
        ((0.1, -0.1), ValueError, r"fars\[1\] must be in \[0, 1\], got -0.1"),
        ((1.5,), ValueError, r"fars\[0\] must be in \[0, 1\], got 1.5"),
        ((math.nan,), ValueError, r"fars\[0\] must be in \[0, 1\], got nan"),
        ((True,), TypeError, r"fars\[0\] must be a real number"),
    ],
)
def test_wrong_rates_are_named(fars: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        tar_at_far(S, SAME, fars)
    with pytest.raises(kind, match=message):
        all_pairs_tar_at_far(torch.eye(4), torch.tensor([0, 0, 1, 1]), fars)


def test_wrong_folds_are_named() -> None:
    for folds, kind, message in (
        (1, ValueError, "folds must be at least 2, got 1"),
        (4, ValueError, "folds must be at most the 3 pairs, got 4"),
        (2.0, TypeError, "folds must be an integer"),
    ):
        with pytest.raises(kind, match=message):
            verification_accuracy(S, SAME, folds)
