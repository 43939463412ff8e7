"""Medians with their spread, of samples and of ratios of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """The median of some samples between their 20th and 80th percentile."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def spread(samples: Sequence[float]) -> Spread | None:
    """Median, 20th and 80th percentile; None without samples."""
    if len(samples) == 0:
        return None
    values = torch.tensor(samples, dtype=torch.float64)
    low, median, high = values.quantile(values.new_tensor([0.2, 0.5, 0.8])).tolist()
    return Spread(median, low, high)


def ratio(samples: Sequence[float], unit: Sequence[float]) -> Spread | None:
    """Spread of ``samples / unit``, round by round.

    Both were taken in the same interleaved rounds, so what slowed a whole round cancels.
    """
    pairs = zip(samples, unit, strict=False)
    return spread([sample / one for sample, one in pairs])
