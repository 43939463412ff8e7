"""Where in the order of similarity each query's positives stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.evaluation.gallery import Gallery, RankOptions, gallery_of
from circle_kernels.evaluation.progress import Advance, progress_bar
from circle_kernels.options import Ties

# Pairs of queries and references of their labels, with all that is known of each: about 180 bytes.
_PAIRS_AT_ONCE = 2**22


class RankedBlock(NamedTuple):
    """The next queries' ranks of positives, ascending within each query's run."""

    ranks: Tensor  # (P,) int64, or float64
    counts: Tensor  # (Q,) int64: positives of each


class PositiveRanks(NamedTuple):
    """The ranks of each query's positives, those of query i from ``offsets[i]`` on.

    Attributes:
        ranks: (P,) int64, or float64 for ``ties="mean"``; 1 is the first; ascending in each query.
        offsets: (N + 1,) int64.
    """

    ranks: Tensor
    offsets: Tensor

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

    Similarities are computed exactly but for one rounding (float64), of rows that are rounded to
    about ``2^-48``: ranks are the same integers on every device, for any number of threads. Without
    ``normalize`` references are rounded to ``2^-48`` of the largest of their norms: much shorter
    ones may tie.

    Args:
        embeddings: (N, D) queries, float16, bfloat16, float32 or float64, finite.
        labels: (N,) integers of any dtype.
        ref_emb, ref_labels: (M, D) and (M,) what is searched. Without them each embedding is a
            query once and all others are searched.
        cameras, ref_cameras: (N,) and (M,) integers: a reference of a query's label on its camera
            is neither a positive nor in the way, as in person re-identification.
        ignore_label: queries and references with this label take part in nothing.
        normalize: compare by cosine (norms below 1e-12 count as 1e-12); else by inner product.
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
    ranks, counts = zip(*ranked_blocks(gallery, options), strict=True)
    return PositiveRanks(torch.cat(ranks), F.pad(torch.cat(counts).cumsum(0), (1, 0)))


def ranked_blocks(gallery: Gallery, options: RankOptions) -> Iterator[RankedBlock]:
    """The ranks of one block of queries after the other; there is one at least."""
    order = gallery.column_labels.argsort(stable=True)
    ordered = gallery.column_labels[order]
    first = torch.searchsorted(ordered, gallery.labels)
    counts = torch.searchsorted(ordered, gallery.labels, right=True) - first
    ties = options.get("ties", "pessimistic")
    pairs = len(counts) * len(order)
    with progress_bar(pairs, "pair", options.get("progress", False)) as advance:
        for block in _blocks(counts):
            parts = []
            for count in counts[block].unique().tolist() or [0]:
                queries = block.start + (counts[block] == count).nonzero()[:, 0]
                places = first[queries, None] + torch.arange(count, device=order.device)
                parts.append(_positives(gallery, queries, order[places]))
            yield _ranks(gallery, block, _in_order(parts), ties, advance)


def _blocks(counts: Tensor) -> Iterator[slice]:
    """Queries next to one another, with so many references of their label each; one block at least.

    In their own order, since all of them among themselves are cheaper than others.
    """
    ends = counts.cumsum(0)
    begin, before = 0, 0
    while True:
        end = int(torch.searchsorted(ends, before + _PAIRS_AT_ONCE, right=True))
        end = min(max(end, begin + 1), len(counts))
        yield slice(begin, end)
        if end == len(counts):
            return
        begin, before = end, int(ends[end - 1])


class _Positives(NamedTuple):
    """The positives of some queries, ascending by similarity within each query's run."""

    queries: Tensor  # (Q,) int64
    counts: Tensor  # (Q,) int64: positives of each
    similarity: Tensor  # (P,) float64
    reach: Tensor  # (P,) int64: references of the query's label that are at least as similar
    exceed: Tensor  # (P,) int64: those that are more similar


def _positives(
    gallery: Gallery,
    queries: Tensor,  # (Q,)
    columns: Tensor,  # (Q, C): the references of each query's label
) -> _Positives:
    rows = queries[:, None].expand_as(columns)
    similarity = gallery.counter.exact_similarities(
        gallery.rows, gallery.columns, rows.flatten(), columns.flatten()
    ).view_as(columns)
    similarity, order = similarity.sort(dim=1)
    positive = _positive(gallery, rows, columns).gather(1, order)
    reach, exceed = (
        columns.shape[1] - torch.searchsorted(similarity, similarity, right=right)
        for right in (False, True)
    )
    found = (each[positive] for each in (similarity, reach, exceed))
    return _Positives(queries, positive.sum(1), *found)


def _in_order(parts: list[_Positives]) -> _Positives:
    """Those of all parts, in the order of their queries."""
    queries, counts, *values = (torch.cat(each) for each in zip(*parts, strict=True))
    order = queries.argsort()
    places = _places((counts.cumsum(0) - counts)[order], counts[order])
    return _Positives(queries[order], counts[order], *(each[places] for each in values))


def _ranks(
    gallery: Gallery, block: slice, positives: _Positives, ties: Ties, advance: Advance
) -> RankedBlock:
    _, counts, thresholds, reach, exceed = positives
    ends = counts.cumsum(0)
    at_least, above = gallery.counter.count_above(
        gallery.rows[block], gallery.columns, thresholds, F.pad(ends, (1, 0)), advance
    )
    # Less those of the query's label: they are positives, or not in the way.
    before = {"pessimistic": at_least - reach, "optimistic": above - exceed}
    others = before[ties] if ties in before else torch.stack(list(before.values())).double().mean(0)
    # The most similar one comes first: each run backwards.
    backwards = _places(ends - 1, counts, step=-1)
    numbers = _places(torch.ones_like(ends), counts)
    return RankedBlock(numbers + others[backwards], counts)


def _positive(gallery: Gallery, queries: Tensor, columns: Tensor) -> Tensor:  # (Q, C) of (Q, C)
    """Which pairs of one label are positives."""
    positive = torch.ones_like(columns, dtype=torch.bool)
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
