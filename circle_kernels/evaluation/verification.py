"""Verification: whether two embeddings are of one class, by a threshold on their similarity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from circle_kernels.arguments import (
    FLOATING_DTYPES,
    beside,
    check_kinds,
    check_labels,
    describe,
    label_numbers,
)
from circle_kernels.distributed.groups import Group, check_group
from circle_kernels.distributed.headers import CALL, check_together, exchange_headers
from circle_kernels.evaluation.gallery import gallery_of
from circle_kernels.evaluation.pair_counts import AllPairs
from circle_kernels.evaluation.similarities import Similarities
from circle_kernels.options import check_integer, real_number


class VerificationAccuracy(NamedTuple):
    """The accuracy on each fold, with the best threshold of all other folds.

    Attributes:
        mean: over folds.
        std: of folds, divided by their number; the mean's standard error is
            ``std / sqrt(folds - 1)``.
        per_fold: (folds,) float64.
        thresholds: (folds,) float64; pairs at least as similar are accepted.
    """

    mean: float
    std: float
    per_fold: Tensor
    thresholds: Tensor


@torch.no_grad()
def verification_accuracy(
    similarity: Tensor,  # (P,)
    same: Tensor,  # (P,) bool
    folds: SupportsIndex | Tensor = 10,
) -> VerificationAccuracy:
    """The share of pairs told right, by the protocol of Labeled Faces in the Wild.

    (Huang et al., "Labeled Faces in the Wild", 2007, image-restricted.) Folds are runs of pairs in
    the order given, as even as they can be, longer ones first; nothing is shuffled. Each fold is
    told by the threshold of largest accuracy on all other folds.

    Every threshold is tried that tells pairs apart differently, no grid: each similarity of the
    other folds, and infinity, which accepts nothing. Of equally good ones the highest is taken.

    Args:
        similarity: (P,) of any floating dtype, finite; minus a distance will do.
        same: (P,) booleans, whether both of a pair are of one class.
        folds: how many, from 2 to P; or (P,) integers, the fold that each pair is in, at least two
            different ones.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range, or pairs that are all
            positive or all negative; the message names it.

    Example:
        >>> same = torch.tensor([True, False, True, False])
        >>> verification_accuracy(torch.tensor([0.9, 0.2, 0.8, 0.1]), same, folds=2).mean
        0.75
    """
    similarity, same = _checked_pairs(similarity, same)
    numbers = _fold_numbers(folds, same)
    order = similarity.argsort(descending=True)
    ordered, ordered_same, ordered_numbers = similarity[order], same[order], numbers[order]
    thresholds, accuracies = [], []
    for fold in numbers.unique():
        others = ordered_numbers != fold
        threshold = _best_threshold(ordered[others], ordered_same[others])
        inside = numbers == fold
        right = (similarity[inside] >= threshold) == same[inside]
        thresholds.append(threshold)
        accuracies.append(right.double().mean())
    per_fold = torch.stack(accuracies)
    return VerificationAccuracy(
        float(per_fold.mean()), float(per_fold.std(correction=0)), per_fold, torch.stack(thresholds)
    )


@torch.no_grad()
def tar_at_far(
    similarity: Tensor,  # (P,)
    same: Tensor,  # (P,) bool
    fars: Iterable[SupportsFloat],
) -> dict[float, float]:
    """The largest true accept rate whose false accept rate is at most the one given.

    TAR is the accepted share of the positive pairs, FAR that of the negative ones (TPR and FPR of
    the ROC curve). A threshold accepts all pairs of equal similarity or none. Where a rate does not
    allow a single one of the negatives (less than ``1 / negatives``, 0 among them) the result is
    that without false accepts: of the positives that are more similar than every negative.

    Args:
        similarity: (P,) of any floating dtype, finite; minus a distance will do.
        same: (P,) booleans, whether both of a pair are of one class.
        fars: rates in [0, 1].

    Returns:
        The TAR of each FAR.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range, or pairs that are all
            positive or all negative; the message names it.

    Example:
        >>> same = torch.tensor([True, True, False, False])
        >>> tar_at_far(torch.tensor([0.9, 0.3, 0.5, 0.1]), same, fars=(0, 0.5))
        {0.0: 0.5, 0.5: 1.0}
    """
    similarity, same = _checked_pairs(similarity, same)
    rates = _checked_rates(fars)
    positives = similarity[same].sort().values
    negatives = similarity[~same].sort(descending=True).values

    def above(rank: int) -> int:
        at_most = torch.searchsorted(positives, negatives[rank - 1], right=True)
        return len(positives) - int(at_most)

    ranks = _first_refused(rates, len(negatives))
    return _tars(ranks, len(positives), {rank: above(rank) for rank in set(ranks.values()) - {0}})


@torch.no_grad()
def all_pairs_tar_at_far(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    fars: Iterable[SupportsFloat],
    *,
    ignore_label: int | None = None,
    normalize: bool = True,
    group: Group | None = None,
    progress: bool = False,
) -> dict[float, float]:
    """:func:`tar_at_far` of all N (N - 1) / 2 pairs of embeddings, without a list of them.

    Exact: two walks over the pairs in tiles find the similarities that are just not accepted to the
    last bit of float32, four to that of float64. Beside the embeddings in float64 memory does not
    grow with N; it takes a megabyte for each of ``fars``. Similarities are sums without rounding
    errors, rounded once (from rows that are rounded to about ``2^-27``, to ``2^-48`` for float64,
    and to ``2^-48`` of the largest norm without ``normalize``): the result is the same on every
    device and for any number of threads and processes.

    Args:
        embeddings: (N, D), float16, bfloat16, float32 or float64, finite.
        labels: (N,) integers of any dtype; pairs of one label are positive.
        fars: rates in [0, 1].
        ignore_label: embeddings with this label take part in nothing.
        normalize: compare by cosine; else by inner product.
        group: processes that have some of the embeddings each; all get the result for all of these.
            Each holds all embeddings and walks over its part of the tiles. As for
            :func:`circle_kernels.circle_loss`.
        progress: show a progress bar, by tqdm.

    Returns:
        The TAR of each FAR.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or range, embeddings that
            are not finite, or pairs that are all positive or all negative; the message names it.
        ImportError: ``progress`` without tqdm.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> all_pairs_tar_at_far(x, torch.tensor([0, 0, 1]), fars=(0, 0.5))
        {0.0: 1.0, 0.5: 1.0}
    """
    call = "all_pairs_tar_at_far"
    check_group(group)
    rates = (
        _checked_rates(fars)
        if group is None
        else check_together(lambda: _checked_rates(fars), call, group, False)
    )
    gallery = gallery_of(
        call,
        embeddings,
        labels,
        (None, None),
        {
            "ignore_label": ignore_label,
            "normalize": normalize,
            "group": group,
            "progress": progress,
        },
    )
    similarities = Similarities.of(embeddings.dtype, unit=normalize)
    operand = similarities.operand(gallery.columns)
    numbers, spread = gallery.column_labels, gallery.spread
    del gallery  # which has the rows twice
    if spread is not None:
        exchange_headers((), {CALL: call, "fars": rates}, spread.group)
    of_label = torch.unique(numbers, return_counts=True)[1]
    positives = int((of_label * (of_label - 1) // 2).sum())
    negatives = len(numbers) * (len(numbers) - 1) // 2 - positives
    _check_both_kinds("labels", positives, negatives)
    pairs = AllPairs(operand, numbers, similarities, spread)
    ranks = _first_refused(rates, negatives)
    searched = sorted(set(ranks.values()) - {0})
    above = pairs.positives_above(searched, progress)
    return _tars(ranks, positives, dict(zip(searched, above, strict=True)))


def _checked_pairs(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities in float64, in which those of all dtypes are as they are."""
    check_kinds(similarity=similarity, same=same)
    if not isinstance(similarity, Tensor) or similarity.dtype not in FLOATING_DTYPES:
        raise TypeError(f"similarity must be a floating-point tensor, got {describe(similarity)}")
    if not isinstance(same, Tensor) or same.dtype != torch.bool:
        raise TypeError(
            "same must be a boolean tensor that is True where both of a pair are of one class, got "
            f"{describe(same)}"
        )
    if similarity.dim() != 1:
        raise ValueError(f"similarity must have shape (pairs,), got {describe(similarity)}")
    if same.shape != similarity.shape:
        raise ValueError(
            f"same must have one entry per similarity: wanted shape {tuple(similarity.shape)}, got "
            f"{tuple(same.shape)}"
        )
    wrong = (~similarity.isfinite()).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"similarity must be finite, got {float(similarity[place])} at {place}, and "
            f"{len(wrong) - 1} more that are not"
        )
    positives = int(same.sum())
    _check_both_kinds("same", positives, len(same) - positives)
    return similarity.detach().double(), same.to(similarity.device)


def _fold_numbers(folds: SupportsIndex | Tensor, same: Tensor) -> Tensor:  # (P,) int64
    """Which fold each pair is in."""
    if isinstance(folds, Tensor) and folds.dim() > 0:
        check_labels("folds", folds, len(same), of="similarity")
        (numbers,) = label_numbers(beside("folds", folds, same))
        if len(numbers.unique()) < 2:
            raise ValueError("folds must have at least 2 different numbers, got 1")
        return numbers
    count = check_integer("folds", folds, smallest=2)
    if count > len(same):
        raise ValueError(f"folds must be at most the {len(same)} pairs, got {count}")
    parts = torch.arange(len(same), device=same.device).tensor_split(count)
    return torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])


def _check_both_kinds(name: str, positives: int, negatives: int) -> None:
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"{name} must have pairs of both kinds, got {positives} of one class and {negatives} "
            "of two"
        )


def _checked_rates(fars: Iterable[SupportsFloat]) -> list[float]:
    if isinstance(fars, (str, bytes)) or not isinstance(fars, Iterable):
        raise TypeError(f"fars must be a sequence of rates in [0, 1], got {describe(fars)}")
    if isinstance(fars, Tensor) and fars.dim() != 1:
        raise ValueError(f"fars must have shape (rates,), got {describe(fars)}")
    rates = [real_number(f"fars[{place}]", far) for place, far in enumerate(fars)]
    for place, rate in enumerate(rates):
        if not 0 <= rate <= 1:
            raise ValueError(f"fars[{place}] must be in [0, 1], got {rate}")
    return rates


def _best_threshold(
    similarity: Tensor,  # (P,), descending
    same: Tensor,  # (P,) bool
) -> Tensor:  # float64
    """The highest of those that tell most pairs right."""
    # What accepting one more gains; only all of equally similar ones can be accepted.
    gains = torch.where(same, 1, -1).cumsum(0)
    can_end = similarity != torch.cat([similarity[1:], similarity.new_full((1,), -math.inf)])
    gains = torch.cat([gains.new_zeros(1), torch.where(can_end, gains, -len(gains) - 1)])
    return torch.cat([similarity.new_full((1,), math.inf), similarity])[gains.argmax()]


def _first_refused(rates: list[float], negatives: int) -> dict[float, int]:
    """Of each rate the rank of the most similar negative pair that is not accepted; 0: all are."""
    ranks = {}
    for rate in rates:
        accepted = min(int(rate * negatives) + 1, negatives)
        while accepted / negatives > rate:  # as the ROC curve divides
            accepted -= 1
        ranks[rate] = accepted + 1 if accepted < negatives else 0
    return ranks


def _tars(ranks: dict[float, int], positives: int, above: dict[int, int]) -> dict[float, float]:
    """Shares of the positives, of which ``above`` are more similar than the negative of a rank."""
    return {rate: above[rank] / positives if rank else 1.0 for rate, rank in ranks.items()}
