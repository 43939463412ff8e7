"""Retrieval metrics from the ranks of positives: arithmetic on vectors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from typing_extensions import Unpack

from circle_kernels.arguments import describe
from circle_kernels.distributed.collectives import gather_rows
from circle_kernels.distributed.groups import check_group
from circle_kernels.distributed.headers import CALL, check_together, exchange_headers
from circle_kernels.evaluation.gallery import RankOptions, SearchOptions, check_known, gallery_of
from circle_kernels.evaluation.ranks import RankedBlock, ranked_blocks
from circle_kernels.options import check_flag, check_integer, real_number

_RESAMPLED_AT_ONCE = 2**22
# What reid_metrics calls the arguments of retrieval_metrics.
_REID_NAMES = {
    "embeddings": "query",
    "labels": "query_ids",
    "cameras": "query_cams",
    "ref_emb": "gallery",
    "ref_labels": "gallery_ids",
    "ref_cameras": "gallery_cams",
    "recall_at": "rank_at",
    "retrieval_metrics": "reid_metrics",
}


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    ref_emb: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
    *,
    recall_at: Sequence[SupportsIndex] = (1, 10, 100, 1000),
    per_query: bool = False,
    **options: Unpack[RankOptions],
) -> dict[str, Any]:
    """How well embeddings retrieve those of their label, exactly, without the (N, M) similarities.

    Of a query with R positives of ranks ``rank_1 < ... < rank_R``, among all that is searched:

    * ``recall@K``: whether ``rank_1 <= K`` (precision at 1 and CMC are the same for K = 1);
    * ``r_precision``: the share of the first R that is positive, ``#{rank_k <= R} / R``;
    * ``map@r``: ``sum_{rank_k <= R} (k / rank_k) / R`` (Musgrave et al., "A Metric Learning Reality
      Check", ECCV 2020);
    * ``map``: average precision, ``sum_k (k / rank_k) / R``, over all positives;
    * ``mrr``: ``1 / rank_1``;
    * ``minp``: ``R / rank_R`` (Ye et al., "Deep Learning for Person Re-identification", 2021).

    Args:
        embeddings, labels, ref_emb, ref_labels: (N, D), (N,), (M, D) and (M,), as for
            :func:`positive_ranks`.
        recall_at: the K of recall@K.
        per_query: return what each query has, (N,) float64, NaN for those without a positive.
        **options: ``cameras``, ``ref_cameras``, ``ignore_label``, ``normalize``, ``ties``,
            ``backend``, ``group`` and ``progress``, as for :func:`positive_ranks`.

    Returns:
        Means over the queries that have a positive, as floats; with ``group=`` over those of all
        processes, the same in each. Per query of this process's.

    Raises:
        As :func:`positive_ranks`; ValueError where no query has a positive, unless ``per_query``.

    Example:
        >>> x, labels = torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 1])
        >>> retrieval_metrics(x, labels, recall_at=(1,))["recall@1"]
        0.5
    """
    call, group = "retrieval_metrics", options.get("group")
    check_group(group)

    def check() -> tuple[int, ...]:
        check_flag("per_query", per_query)
        return _checked_tops("recall_at", recall_at)

    tops = check() if group is None else check_together(check, call, group, False)
    gallery = gallery_of(call, embeddings, labels, (ref_emb, ref_labels), options)
    spread = gallery.spread
    if spread is not None:
        alike = {CALL: call, "recall_at": tops, "per_query": bool(per_query)}
        exchange_headers((), alike, spread.group)
    blocks = [_of_queries(block, tops) for block in ranked_blocks(gallery, options)]
    values = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    if per_query:
        return values
    if spread is not None:
        stacked = torch.stack(list(values.values()), dim=1)
        gathered = gather_rows(stacked, spread.sizes, spread.group)
        # Laid out as in one process, so that means are added up alike.
        values = dict(zip(values, gathered.T.contiguous(), strict=True))
    return _means(values, self_mode=gallery.own is not None)


def reid_metrics(
    query: Tensor,  # (N, D)
    query_ids: Tensor,  # (N,)
    query_cams: Tensor,  # (N,)
    gallery: Tensor,  # (M, D)
    gallery_ids: Tensor,  # (M,)
    gallery_cams: Tensor,  # (M,)
    *,
    rank_at: Sequence[SupportsIndex] = (1, 5, 10),
    per_query: bool = False,
    **options: Unpack[SearchOptions],
) -> dict[str, Any]:
    """Person re-identification: ``rank@K`` of the CMC curve, ``map`` and ``minp``.

    As Zheng et al. ("Scalable Person Re-identification", ICCV 2015) evaluate Market-1501: pictures
    of the query's person on its camera are left out, and so is junk, whose identity is -1;
    distractors (identity 0) stay in the gallery. Average precision is the mean of the precisions at
    the positives, without interpolation. Queries without a positive on another camera are skipped.

    Args:
        query, query_ids, query_cams: (N, D), (N,) and (N,) as for :func:`positive_ranks`.
        gallery, gallery_ids, gallery_cams: (M, D), (M,) and (M,), what is searched.
        rank_at: the K of rank@K.
        per_query: as for :func:`retrieval_metrics`.
        **options: ``normalize``, ``ties``, ``backend``, ``group`` and ``progress``, as for
            :func:`positive_ranks`; ``ignore_label``, the identity of junk, is -1.

    Raises:
        As :func:`retrieval_metrics`.
    """
    group = options.get("group")
    check_group(group)
    given = {"query_cams": query_cams, "gallery": gallery, "gallery_ids": gallery_ids}
    given["gallery_cams"] = gallery_cams

    def check() -> None:
        check_known(options, SearchOptions.__optional_keys__)
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {describe(value)}")

    check() if group is None else check_together(check, "reid_metrics", group, False)
    ranked: RankOptions = {"ignore_label": -1, "cameras": query_cams, "ref_cameras": gallery_cams}
    ranked.update(options)
    with _called(_REID_NAMES):
        found = retrieval_metrics(
            query, query_ids, gallery, gallery_ids, recall_at=rank_at, per_query=per_query, **ranked
        )
    ranks = {
        name.replace("recall@", "rank@"): value
        for name, value in found.items()
        if name.startswith("recall@")
    }
    return {**ranks, "map": found["map"], "minp": found["minp"]}


def bootstrap_intervals(
    per_query: Mapping[str, Tensor],  # (N,) each
    *,
    confidence: float = 0.95,
    resamples: SupportsIndex = 1000,
    seed: SupportsIndex = 0,
) -> dict[str, tuple[float, float]]:
    """Between which means each metric would lie, had other queries been drawn.

    Percentiles of the means of queries drawn with replacement (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13).

    Args:
        per_query: what ``per_query=True`` returns; NaN of queries without a positive is left out.
        confidence: the share of means between the two numbers, in (0, 1).
        resamples: how many times queries are drawn.
        seed: of the draws; the same for all metrics.

    Returns:
        The lower and the upper end of each.

    Raises:
        TypeError, ValueError: another type, confidence or number, or a metric without queries.
    """
    if not isinstance(per_query, Mapping):
        raise TypeError(
            f"per_query must be a dictionary, as per_query=True returns, got {describe(per_query)}"
        )
    share = real_number("confidence", confidence)
    if not 0 < share < 1:
        raise ValueError(f"confidence must be greater than 0 and less than 1, got {confidence!r}")
    count = check_integer("resamples", resamples, smallest=1)
    seed = check_integer("seed", seed)
    # Named, for users may have set another default device.
    cpu = torch.device("cpu")
    ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64, device=cpu)
    intervals = {}
    for name, values in per_query.items():
        if not isinstance(values, Tensor) or values.dim() != 1:
            raise TypeError(
                f"per_query[{name!r}] must be a tensor of shape (N,), as per_query=True returns, "
                f"got {describe(values)}"
            )
        values = values[~values.isnan()].double().cpu()
        if len(values) == 0:
            raise ValueError(f"per_query[{name!r}] must have a query with a positive, got none")
        generator = torch.Generator(cpu).manual_seed(seed)
        size = max(1, _RESAMPLED_AT_ONCE // len(values))
        means = []
        for each in [size] * (count // size) + [count % size] * (count % size > 0):
            shape = (each, len(values))
            drawn = torch.randint(len(values), shape, generator=generator, device=cpu)
            means.append(values[drawn].mean(1))
        low, high = torch.cat(means).quantile(ends).tolist()
        intervals[name] = (low, high)
    return intervals


@contextlib.contextmanager
def _called(names: Mapping[str, str]) -> Iterator[None]:
    """Have errors name arguments as they are called here."""
    try:
        yield
    except (TypeError, ValueError) as error:
        known = re.compile(rf"\b({'|'.join(names)})\b")
        raise type(error)(known.sub(lambda name: names[name[0]], str(error))) from error


def _checked_tops(name: str, tops: Sequence[SupportsIndex]) -> tuple[int, ...]:
    if isinstance(tops, (str, bytes)) or not isinstance(tops, Sequence):
        raise TypeError(f"{name} must be a sequence of integers, got {describe(tops)}")
    return tuple(
        check_integer(f"{name}[{place}]", top, smallest=1) for place, top in enumerate(tops)
    )


def _of_queries(block: RankedBlock, tops: Sequence[int]) -> dict[str, Tensor]:
    """Each metric of each query of a block, float64; NaN without a positive."""
    counts = block.counts
    ends = counts.cumsum(0)
    has = counts > 0
    ranks, positives = block.ranks.double(), counts.double()
    order = torch.arange(1, len(ranks) + 1, device=counts.device)
    precisions = (order - (ends - counts).repeat_interleave(counts)) / ranks
    among_first = (ranks <= positives.repeat_interleave(counts)).double()

    def share(values: Tensor) -> Tensor:  # of (P,), 0 / 0 = NaN
        return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True) / positives

    def at(places: Tensor) -> Tensor:
        values = torch.full_like(positives, torch.nan)
        values[has] = ranks[places[has]]
        return values

    first, last = at(ends - counts), at(ends - 1)
    nothing = torch.full_like(positives, torch.nan)
    recalls = {f"recall@{top}": torch.where(has, (first <= top).double(), nothing) for top in tops}
    return {
        **recalls,
        "r_precision": share(among_first),
        "map@r": share(precisions * among_first),
        "map": share(precisions),
        "mrr": 1 / first,
        "minp": positives / last,
    }


def _means(values: Mapping[str, Tensor], *, self_mode: bool) -> dict[str, float]:
    if all(each.isnan().all() for each in values.values()):
        wanted = "labels must have one twice" if self_mode else "ref_labels must have one of labels"
        raise ValueError(
            f"no query has a positive: {wanted} (with cameras on another camera), "
            "ignore_label aside"
        )
    return {name: float(each.nanmean()) for name, each in values.items()}
