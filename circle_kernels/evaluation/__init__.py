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
    from circle_kernels.evaluation.neighbours import Nearest, nearest
    from circle_kernels.evaluation.ranks import PositiveRanks, positive_ranks
    from circle_kernels.evaluation.verification import (
        VerificationAccuracy,
        all_pairs_tar_at_far,
        tar_at_far,
        verification_accuracy,
    )
else:
    __getattr__ = load_later(
        __name__,
        {
            "metrics": ("bootstrap_intervals", "reid_metrics", "retrieval_metrics"),
            "neighbours": ("Nearest", "nearest"),
            "ranks": ("PositiveRanks", "positive_ranks"),
            "verification": (
                "VerificationAccuracy",
                "all_pairs_tar_at_far",
                "tar_at_far",
                "verification_accuracy",
            ),
        },
    )

__all__ = [
    "Nearest",
    "PositiveRanks",
    "VerificationAccuracy",
    "all_pairs_tar_at_far",
    "bootstrap_intervals",
    "nearest",
    "positive_ranks",
    "reid_metrics",
    "retrieval_metrics",
    "tar_at_far",
    "verification_accuracy",
]


def __dir__() -> list[str]:
    return sorted(__all__)
