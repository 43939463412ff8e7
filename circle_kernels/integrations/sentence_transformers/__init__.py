"""Losses for sentence-transformers."""

from circle_kernels.integrations.sentence_transformers.classes import CircleLoss, PairLoss

__all__ = ["CircleLoss", "PairLoss"]
