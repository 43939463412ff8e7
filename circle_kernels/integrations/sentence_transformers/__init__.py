"""Losses for sentence-transformers: over (sentence, class) batches, and over columns of sentences
that belong together."""

from circle_kernels.integrations.sentence_transformers.classes import CircleLoss, PairLoss
from circle_kernels.integrations.sentence_transformers.ranking import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "CircleLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "PairLoss",
]
