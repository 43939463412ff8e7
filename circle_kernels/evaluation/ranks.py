"""Where in the order of similarity each query's positives stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.evaluation.gallery import Gallery, RankOptions, gallery_of
from circle_kernels.evaluation.progress import progress_bar

# Pairs of one label in memory at a time, with what is known of each: about 100 bytes.
_PAIRS_AT_ONCE = 2**20


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
    found = list(ranked_blocks(gallery, options))
    counts = torch.cat([gallery.labels.new_zeros(1), *(each.counts for each in found)])
    return PositiveRanks(torch.cat([each.ranks for each in found]), counts.cumsum(0))


def ranked_blocks(gallery: Gallery, options: RankOptions) -> Iterator[PositiveRanks]:
    """The ranks of one block of queries after the other."""
    order = gallery.column_labels.argsort(stable=True)
    ordered = gallery.column_labels[order]
    first = torch.searchsorted(ordered, gallery.labels)
    counts = torch.searchsorted(ordered, gallery.labels, right=True) - first
    counts *= gallery.searched
    ties = options.get("ties", "pessimistic")
    with progress_bar(len(counts), "query", options.get("progress", False)) as progress:
        for queries in _blocks(counts):
            rows = torch.arange(len(counts[queries]), device=order.device)
            rows = rows.repeat_interleave(counts[queries])
            starts = first[queries] - (counts[queries].cumsum(0) - counts[queries])
            columns = order[torch.arange(len(rows), device=order.device) + starts[rows]]
            yield _ranks(gallery, queries, (rows, columns), ties)
            progress(queries.stop - queries.start)


def _blocks(counts: Tensor) -> Iterator[slice]:
    """Slices of queries with few enough pairs together, or of one that has more; at least one."""
    ends = counts.cumsum(0).tolist()
    start = before = 0
    for place, end in enumerate(ends):
        if end - before > _PAIRS_AT_ONCE and place > start:
            yield slice(start, place)
            start, before = place, ends[place - 1]
    yield slice(start, len(ends))


def _ranks(
    gallery: Gallery,
    queries: slice,
    same: tuple[Tensor, Tensor],  # (P,) each: query in the block, reference of its label
    ties: str,
) -> PositiveRanks:
    rows, columns = same
    embeddings = gallery.rows[queries]
    similarity = gallery.counter.exact_similarities(embeddings, gallery.columns, rows, columns)
    order = similarity.argsort()
    order = order[rows[order].argsort(stable=True)]  # by query, then by similarity
    columns, similarity = columns[order], similarity[order]  # rows are in order already
    positive = _positive(gallery, queries, rows, columns)
    num_queries = len(embeddings)
    offsets = _offsets(rows[positive], num_queries)
    at_least, above = gallery.counter.count_above(
        embeddings, gallery.columns, similarity[positive], offsets
    )
    # Less those of the query's label: they are positives, or not in the way.
    first, end = _of_equal_ones(rows, similarity)
    ends = _offsets(rows, num_queries)[1:][rows]
    before = {
        "pessimistic": at_least - (ends - first)[positive],
        "optimistic": above - (ends - end)[positive],
    }
    others = before[ties] if ties in before else torch.stack(list(before.values())).double().mean(0)
    of_query = rows[positive]
    order = offsets[1:][of_query] - torch.arange(len(of_query), device=rows.device)  # 1: the first
    ranks = torch.empty_like(others)
    ranks[offsets[:-1][of_query] + order - 1] = order + others
    return PositiveRanks(ranks, offsets)


def _positive(gallery: Gallery, queries: slice, rows: Tensor, columns: Tensor) -> Tensor:
    """Which pairs of one label are positives."""
    positive = torch.ones_like(rows, dtype=torch.bool)
    if gallery.own is not None:
        positive &= gallery.own[queries][rows] != columns
    if gallery.cameras is not None and gallery.column_cameras is not None:
        positive &= gallery.cameras[queries][rows] != gallery.column_cameras[columns]
    return positive


def _offsets(rows: Tensor, num_rows: int) -> Tensor:  # (num_rows + 1,)
    """Where each row's entries begin, and the last one's end."""
    return torch.searchsorted(rows, torch.arange(num_rows + 1, device=rows.device))


def _of_equal_ones(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each entry, where those of its row with its value begin and end."""
    places = torch.arange(len(rows) + 1, device=rows.device)
    begins = places > 0
    begins[1:-1] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
    begins[:1] = True
    bounds = places[begins] if len(rows) else places[:0]
    group = begins[:-1].cumsum(0) - 1
    return bounds[:-1][group], bounds[1:][group]
