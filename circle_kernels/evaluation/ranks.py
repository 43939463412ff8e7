"""Where in the order of similarity each query's positives stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.evaluation.gallery import Gallery, RankOptions, gallery_of
from circle_kernels.evaluation.progress import progress_bar

# Entries of a matrix of queries and references of their labels, with all that is known of each:
# about 100 bytes.
_PAIRS_AT_ONCE = 2**20


class RankedBlock(NamedTuple):
    """Some queries and the ranks of their positives, ascending within each query's run."""

    queries: Tensor  # (Q,) int64
    ranks: Tensor  # (P,) int64, or float64
    counts: Tensor  # (Q,) int64: positives of each


class PositiveRanks(NamedTuple):
    """The ranks of each query's positives, those of query i from ``offsets[i]`` on."""

    ranks: Tensor  # (P,) int64, or float64 for ties="mean"; 1 is the first; ascending by query
    offsets: Tensor  # (N + 1,) int64

    @property
    def counts(self) -> Tensor:  # (N,) int64
        """How many positives each query has."""
        return self.offsets.diff()


@torch.no_grad()
def positive_ranks(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    **options: Unpack[RankOptions],
) -> PositiveRanks:
    """Rank each query's positives among all references, without the (N, M) similarities.

    The k-th most similar positive has the rank k + the number of non-positives at least as similar:
    ties go against the network, so that one that maps everything to one point finds nothing. Every
    retrieval metric follows (:func:`retrieval_metrics`).

    Similarities are computed exactly but for one rounding (float64), in which rows are rounded to
    about ``2^-48``: ranks are the same integers on every device, for any number of threads.

    Args:
        embeddings: (N, D) queries, float16, bfloat16, float32 or float64, finite.
        labels: (N,) integers of any dtype.
        ref_emb, ref_labels: (M, D) and (M,) what is searched. Without them each embedding is a
            query once and all others are searched.
        cameras, ref_cameras: (N,) and (M,) integers: a reference of a query's label on its camera
            is neither a positive nor in the way, as in person re-identification.
        ignore_label: queries and references with this label take part in nothing.
        normalize: compare by cosine; else by inner product.
        ties: ``"pessimistic"``; ``"optimistic"``: only more similar non-positives stand before;
            ``"mean"``: half of both.
        backend: ``"cpu"``, the C++ kernel, ``"tiled"``, PyTorch on any device, or ``"auto"``.
        group: processes that have some of the queries and of the references each: ranks are those
            of this process's queries among the references of all. As for
            :func:`circle_kernels.circle_loss`.
        progress: show a progress bar, by tqdm.

    Returns:
        Ranks, none of queries that have no positive.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or device, or embeddings
            that are not finite; the message names it.
        ImportError: ``progress`` without tqdm.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> positive_ranks(x, torch.tensor([0, 1, 0])).ranks
        tensor([2, 2])
    """
    gallery = gallery_of("positive_ranks", embeddings, labels, (ref_emb, ref_labels), options)
    blocks = list(ranked_blocks(gallery, options))
    counts = torch.zeros_like(gallery.labels)
    for block in blocks:
        counts[block.queries] = block.counts
    offsets = F.pad(counts.cumsum(0), (1, 0))
    ranks = blocks[0].ranks.new_empty(int(offsets[-1]))
    for block in blocks:
        ranks[_places(offsets[block.queries], block.counts)] = block.ranks
    return PositiveRanks(ranks, offsets)


def ranked_blocks(gallery: Gallery, options: RankOptions) -> Iterator[RankedBlock]:
    """The ranks of one block of queries after the other; there is one at least."""
    order = gallery.column_labels.argsort(stable=True)
    ordered = gallery.column_labels[order]
    first = torch.searchsorted(ordered, gallery.labels)
    counts = torch.searchsorted(ordered, gallery.labels, right=True) - first
    # Those with as many references of their label together, so that a matrix has few gaps.
    queries = counts.argsort(stable=True)
    ties = options.get("ties", "pessimistic")
    with progress_bar(len(queries), "query", options.get("progress", False)) as progress:
        for block in queries.split(_block_sizes(counts[queries])):
            width = int(counts[block].max()) if len(block) else 0
            places = torch.arange(width, device=order.device)
            same = places < counts[block, None]
            columns = order[(first[block, None] + places)[same]]
            yield _ranks(gallery, block, same, columns, ties)
            progress(len(block))


def _block_sizes(counts: Tensor) -> list[int]:
    """How many of the next queries, in the order of their counts, make a matrix; at least one."""
    sizes: list[int] = []
    start = 0
    while start < len(counts) or not sizes:
        # The widest of n rows is the last one.
        widths = counts[start : start + _PAIRS_AT_ONCE].clamp(min=1)
        entries = widths * torch.arange(1, len(widths) + 1, device=counts.device)
        sizes.append(max(1, int((entries <= _PAIRS_AT_ONCE).sum())) if len(widths) else 0)
        start += sizes[-1]
    return sizes


def _ranks(
    gallery: Gallery,
    queries: Tensor,  # (Q,)
    same: Tensor,  # (Q, C) bool: which entries of a row are references of its query's label
    columns: Tensor,  # (P,): these references, row after row
    ties: str,
) -> RankedBlock:
    embeddings = gallery.rows[queries]
    rows = same.nonzero()[:, 0].contiguous()
    found = gallery.counter.exact_similarities(embeddings, gallery.columns, rows, columns)
    similarity = embeddings.new_full(same.shape, torch.inf)
    similarity[same] = found
    positive = torch.zeros_like(same)
    positive[same] = _positive(gallery, queries[rows], columns)
    similarity, order = similarity.sort(dim=1)
    positive = positive.gather(1, order)
    counts = positive.sum(1)
    ends = counts.cumsum(0)
    thresholds = similarity[positive]
    at_least, above = gallery.counter.count_above(
        embeddings, gallery.columns, thresholds, F.pad(ends, (1, 0))
    )
    # Less those of the query's label: they are positives, or not in the way.
    reach = same.sum(1, keepdim=True) - torch.searchsorted(similarity, similarity)
    exceed = same.sum(1, keepdim=True) - torch.searchsorted(similarity, similarity, right=True)
    before = {"pessimistic": at_least - reach[positive], "optimistic": above - exceed[positive]}
    others = before[ties] if ties in before else torch.stack(list(before.values())).double().mean(0)
    # The most similar one comes first: each run backwards.
    backwards = _places(ends - 1, counts, step=-1)
    numbers = _places(torch.ones_like(ends), counts)
    return RankedBlock(queries, numbers + others[backwards], counts)


def _positive(gallery: Gallery, queries: Tensor, columns: Tensor) -> Tensor:  # (P,) of (P,) each
    """Which pairs of one label are positives."""
    positive = torch.ones_like(queries, dtype=torch.bool)
    if gallery.own is not None:
        positive &= gallery.own[queries] != columns
    if gallery.cameras is not None and gallery.column_cameras is not None:
        positive &= gallery.cameras[queries] != gallery.column_cameras[columns]
    return positive


def _places(first: Tensor, counts: Tensor, step: int = 1) -> Tensor:  # (counts.sum(),)
    """For each run its first number and the following ones, run after run."""
    before = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum()), device=counts.device)
    return (first - step * before).repeat_interleave(counts) + step * within
