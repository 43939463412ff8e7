"""How well embeddings tell pairs of pictures of one letter from others.

A pair is accepted where its cosine similarity is above a threshold. TAR (true
accept rate) is the accepted share of the positive pairs, FAR (false accept rate) that of the
negative ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from circle_kernels.evaluation import tar_at_far, verification_accuracy

FOLDS = 10


class Pairs(NamedTuple):
    """P pairs in folds that have no class in common."""

    first: Tensor  # (P,) indices of embeddings
    second: Tensor  # (P,) indices of embeddings, larger than those of `first`
    same: Tensor  # (P,) bool, whether both are of one class; half of the pairs of each fold are
    fold: Tensor  # (P,) integers in 0 to folds - 1

    def accuracies(self, embeddings: Tensor) -> Tensor:
        """Accuracy on each fold with the best threshold of all the other folds, (folds,)."""
        scores = torch.cosine_similarity(embeddings[self.first], embeddings[self.second])
        return verification_accuracy(scores, self.same, self.fold).per_fold


def draw_pairs(
    labels: Tensor,  # (N,) integers in 0 to C - 1
    generator: torch.Generator,
    folds: int = FOLDS,
) -> Pairs:
    """Every positive pair, and in each fold as many different negative pairs drawn at random.

    The classes are dealt to the folds at random; a pair lies within a fold. This is the protocol
    of Labeled Faces in the Wild (Huang et al., 2007), but with all positive pairs.
    """
    fold_of_class = torch.randperm(int(labels.max()) + 1, generator=generator) % folds
    parts = []
    for fold in range(folds):
        members = torch.nonzero(fold_of_class[labels] == fold).flatten()
        first, second = torch.combinations(members).T
        same = labels[first] == labels[second]
        positives, negatives = torch.nonzero(same).flatten(), torch.nonzero(~same).flatten()
        drawn = torch.randperm(len(negatives), generator=generator)[: len(positives)]
        chosen = torch.cat([positives, negatives[drawn]])
        parts.append((first[chosen], second[chosen], same[chosen], torch.full_like(chosen, fold)))
    return Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))


class AllPairs(NamedTuple):
    """The cosine similarity of every unordered pair of different embeddings."""

    positives: np.ndarray
    negatives: np.ndarray

    def false_accepts(self, far: float) -> int:
        """The most negative pairs that may be accepted for a false accept rate of at most far."""
        return int(far * len(self.negatives))

    def thresholds(self, fars: Sequence[float]) -> np.ndarray:
        """The similarities above which a pair is accepted, for false accept rates below 1.

        They are those of the best negative pairs to refuse; ties with these are refused as well.
        """
        return np.quantile(self.negatives, 1 - np.asarray(fars), method="inverted_cdf")

    def tars(self, fars: Sequence[float]) -> np.ndarray:
        """The largest TAR for each FAR; NaN where not even one negative pair may be accepted."""
        sides = torch.from_numpy(self.positives), torch.from_numpy(self.negatives)
        same = torch.cat([torch.full_like(each, side) for side, each in enumerate(sides)]) == 0
        found = tar_at_far(torch.cat(sides), same, fars)
        return np.array([found[far] if self.false_accepts(far) else np.nan for far in fars])


def all_pairs(embeddings: Tensor, labels: Tensor) -> AllPairs:
    """All pairs of (N, D) embeddings with (N,) labels."""
    normalized = F.normalize(embeddings, dim=1)
    similarity = normalized @ normalized.T
    once = torch.ones_like(similarity, dtype=torch.bool).triu(diagonal=1)
    same = labels[:, None] == labels
    positives, negatives = (similarity.masked_select(once & kind) for kind in (same, ~same))
    return AllPairs(positives.numpy(), negatives.numpy())
