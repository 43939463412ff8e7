"""Medians with their spread, of samples and of ratios of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    low, median, high = np.percentile(samples, [20, 50, 80])
    return Spread(float(median), float(low), float(high))


def ratio(samples: Sequence[float], unit: Sequence[float]) -> Spread | None:
    """Spread of ``samples / unit``, round by round.

    Both were taken in the same interleaved rounds, so what slowed a whole round cancels.
    """
    pairs = zip(samples, unit, strict=False)
    return spread([sample / one for sample, one in pairs])
