"""Verification: do two pictures show the same letter? Accuracy on pairs, and TAR at a given FAR.

A pair is accepted where its cosine similarity is above a threshold. TAR (true accept rate) is
the accepted share of the positive pairs, FAR (false accept rate) that of the negative ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 10


@dataclass(frozen=True)
class VerificationPairs:
    """P pairs in folds that have no class in common."""

    first: Tensor  # (P,) indices of embeddings
    second: Tensor  # (P,) indices of embeddings, larger than those of `first`
    same: np.ndarray  # (P,) bool, whether both are of one class
    fold: np.ndarray  # (P,) integers in 0 to folds - 1

    def scores(self, embeddings: Tensor) -> np.ndarray:
        """Cosine similarities of the pairs, (P,) float64, from (N, D) embeddings."""
        normalized = F.normalize(embeddings.double(), dim=1)
        return (normalized[self.first] * normalized[self.second]).sum(dim=1).numpy()


def draw_pairs(labels: Tensor, generator: torch.Generator, folds: int = FOLDS) -> VerificationPairs:
    """Every positive pair, and in each fold as many different negative pairs drawn at random.

    The classes are dealt to the folds at random; a pair lies within a fold. This is the protocol
    of Labeled Faces in the Wild (Huang et al., 2007), but with all positive pairs.

    Args:
        labels: (N,) integers, any values.
        generator: source of the random numbers.
        folds: number of folds.

    Raises:
        ValueError: a fold without positive pairs, or with fewer negative than positive pairs.
    """
    _, class_of = labels.unique(return_inverse=True)
    number_of_classes = int(class_of.max()) + 1
    fold_of_class = torch.randperm(number_of_classes, generator=generator) % folds
    fold_of = fold_of_class[class_of]
    parts = []
    for fold in range(folds):
        members = torch.nonzero(fold_of == fold).flatten()
        first, second = members[torch.triu_indices(len(members), len(members), offset=1)]
        same = class_of[first] == class_of[second]
        positives, negatives = torch.nonzero(same).flatten(), torch.nonzero(~same).flatten()
        if not 0 < len(positives) <= len(negatives):
            raise ValueError(
                f"labels must give each of {folds} folds a positive pair and at least as many "
                f"negative ones; a fold has {len(positives)} and {len(negatives)}"
            )
        drawn = torch.randperm(len(negatives), generator=generator)[: len(positives)]
        chosen = torch.cat([positives, negatives[drawn]])
        parts.append((first[chosen], second[chosen], same[chosen], fold_of[first[chosen]]))
    first, second, same, fold = (torch.cat(part) for part in zip(*parts, strict=True))
    return VerificationPairs(first, second, same.numpy(), fold.numpy())


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold of largest accuracy, halfway between two scores; of several the lowest.

    It is -inf where accepting every pair is best, the largest score where refusing every pair is.

    Args:
        scores: (P,) similarities.
        same: (P,) bool, whether the pair is positive.
    """
    order = np.argsort(scores)
    scores, same = scores[order], same[order]
    # With the threshold just below the score at i, the pairs from i on are accepted.
    wrongly_refused = np.concatenate([[0], np.cumsum(same)])
    rightly_refused = np.concatenate([[0], np.cumsum(~same)])
    errors = wrongly_refused - rightly_refused  # up to a constant
    # No threshold separates equal scores.
    possible = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    cut = int(np.argmin(np.where(possible, errors, len(scores) + 1)))
    below, above = np.concatenate([[-np.inf], scores, [np.inf]])[cut : cut + 2]
    middle = (below + above) / 2
    return float(middle if middle < above else below)


def k_fold_accuracies(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Accuracy on each fold with the best threshold of all the other folds.

    Args:
        scores: (P,) similarities.
        same: (P,) bool, whether the pair is positive.
        fold: (P,) the pair's fold.

    Returns:
        (K,) float64, in the order of the folds' numbers.
    """
    accuracies = []
    for held_out in np.unique(fold):
        others = fold != held_out
        accepted = scores[~others] > best_threshold(scores[others], same[others])
        accuracies.append((accepted == same[~others]).mean())
    return np.array(accuracies)


@dataclass(frozen=True)
class Roc:
    """All pairs of a set of embeddings, by similarity."""

    positives: np.ndarray  # similarities of the positive pairs, ascending
    negatives: np.ndarray  # of the negative pairs, ascending

    def allowed_false_accepts(self, far: float) -> int:
        """The most negative pairs that may be accepted for a false accept rate of at most ``far``.

        Below 1 / (number of negative pairs) it is 0: these pairs cannot tell such rates apart.
        """
        total = len(self.negatives)
        nearest = round(far * total)
        return nearest if nearest / total <= far else nearest - 1

    def threshold(self, false_accepts: int) -> float:
        """The similarity above which a pair is accepted, so that no more negatives are than given.

        It is that of the best negative pair to refuse; ties with it are refused as well.
        """
        if false_accepts >= len(self.negatives):
            return -math.inf
        return float(self.negatives[len(self.negatives) - 1 - false_accepts])

    def true_accept_rate(self, false_accepts: int) -> float:
        """Largest TAR with at most that many negative pairs accepted."""
        refused = np.searchsorted(self.positives, self.threshold(false_accepts), side="right")
        return float((len(self.positives) - refused) / len(self.positives))

    def tar_at_far(self, far: float) -> float:
        """Largest TAR with a FAR of at most ``far``; NaN where these pairs cannot resolve it.

        Nothing is interpolated. A rate is resolved from one false accept on; how far one or a few
        can be relied on is for the reader of :meth:`allowed_false_accepts` to judge.

        Args:
            far: in (0, 1].
        """
        allowed = self.allowed_false_accepts(far)
        return self.true_accept_rate(allowed) if allowed else math.nan

    def curve(self, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
        """FAR, evenly spaced on a logarithmic axis from one false accept to all, and TAR."""
        total = len(self.negatives)
        counts = np.unique(np.geomspace(1, total, points).round().astype(np.int64))
        return counts / total, np.array([self.true_accept_rate(count) for count in counts])


def all_pairs(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    chunk: int = 1024,
) -> Roc:
    """The cosine similarity of every unordered pair of different embeddings.

    Args:
        embeddings: (N, D) floating point.
        labels: (N,) integers, any values.
        chunk: number of embeddings compared with all others at a time.

    Raises:
        ValueError: an embedding that is not finite, or no positive or no negative pair.
    """
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite")
    normalized = F.normalize(embeddings, dim=1)
    positives, negatives = [], []
    for start in range(0, len(labels), chunk):
        end = start + chunk
        similarity = normalized[start:end] @ normalized[start:].T
        later = torch.ones_like(similarity, dtype=torch.bool).triu(diagonal=1)
        same = labels[start:end, None] == labels[start:]
        positives.append(similarity[later & same])
        negatives.append(similarity[later & ~same])
    roc = Roc(*(np.sort(torch.cat(part).numpy()) for part in (positives, negatives)))
    if not len(roc.positives) or not len(roc.negatives):
        raise ValueError("labels must have a class with two embeddings, and two classes")
    return roc


@dataclass(frozen=True)
class Verification:
    """How well embeddings tell whether two pictures show the same letter."""

    accuracies: np.ndarray  # (K,), of the folds
    roc: Roc


def verify(embeddings: Tensor, labels: Tensor, pairs: VerificationPairs) -> Verification:
    """Accuracy on pairs in folds, and the ROC of all pairs, of (N, D) embeddings."""
    accuracies = k_fold_accuracies(pairs.scores(embeddings), pairs.same, pairs.fold)
    return Verification(accuracies, all_pairs(embeddings, labels))
