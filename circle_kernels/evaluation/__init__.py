"""Exact evaluation of embeddings: retrieval, re-identification and verification.

No (N, M) matrix, no sorted gallery: every metric follows from the ranks of the positives, or from
counts of pairs.
"""

from typing import TYPE_CHECKING

from circle_kernels._later import load_later

if TYPE_CHECKING:
    from circle_kernels.evaluation.metrics import (
        bootstrap_intervals,
        reid_metrics,
        retrieval_metrics,
    )
    from circle_kernels.evaluation.ranks import PositiveRanks, positive_ranks

__all__ = [
    "PositiveRanks",
    "bootstrap_intervals",
    "positive_ranks",
    "reid_metrics",
    "retrieval_metrics",
]

__getattr__ = load_later(
    __name__,
    {
        "metrics": ("bootstrap_intervals", "reid_metrics", "retrieval_metrics"),
        "ranks": ("PositiveRanks", "positive_ranks"),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
