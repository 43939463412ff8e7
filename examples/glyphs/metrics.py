"""Retrieval metrics, exact, without the matrix of all similarities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over all queries, each in [0, 1]."""

    recall_at_1: float
    r_precision: float
    map_at_r: float


def nearest_neighbors(
    embeddings: Tensor,  # (N, D)
    k: int,
    *,
    queries: Tensor | None = None,  # (Q,)
    chunk: int = 1024,
) -> Tensor:  # (Q, k)
    """Indices of the k embeddings of largest cosine similarity, best first, without the query.

    Args:
        embeddings: (N, D) floating point.
        k: number of neighbours, at most N - 1.
        queries: (Q,) indices of the embeddings to search for; all of them by default.
        chunk: number of queries compared at a time; memory grows with chunk * N.

    Raises:
        ValueError: an embedding that is not finite, or too large a k.
    """
    if not 0 < k < len(embeddings):
        raise ValueError(f"k must be in 1 to {len(embeddings) - 1}, got {k}")
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite")
    embeddings = F.normalize(embeddings, dim=1)
    if queries is None:
        queries = torch.arange(len(embeddings), device=embeddings.device)
    neighbors = []
    for part in queries.split(chunk):
        similarity = embeddings[part] @ embeddings.T
        similarity.scatter_(1, part[:, None], -torch.inf)
        neighbors.append(similarity.topk(k, dim=1).indices)
    return torch.cat(neighbors)


def retrieval_metrics(
    embeddings: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    chunk: int = 1024,
) -> RetrievalMetrics:
    """Recall@1, R-precision and MAP@R; every embedding is query and the others its gallery.

    R is the number of other embeddings of the query's class. R-precision is the share of that
    class among the R nearest neighbours; MAP@R is the mean over ranks i = 1 to R of the precision
    at i where the neighbour at i is of that class, and 0 where it is not (Musgrave et al., "A
    Metric Learning Reality Check", ECCV 2020, section 3.2). A query alone in its class has R = 0
    and is left out of all means.

    Args:
        embeddings: (N, D) floating point, compared by cosine similarity.
        labels: (N,) integers, any values.
        chunk: number of queries compared at a time; memory grows with chunk * N.

    Raises:
        ValueError: an embedding that is not finite, or no class with two embeddings.
    """
    _, class_of, class_sizes = labels.unique(return_inverse=True, return_counts=True)
    relevant = class_sizes[class_of] - 1  # (N,), R of each query
    queries = torch.nonzero(relevant).flatten()
    if len(queries) == 0:
        raise ValueError("labels must hold at least one class with two embeddings")
    relevant = relevant[queries]
    max_relevant = int(relevant.max())
    neighbors = nearest_neighbors(embeddings, max_relevant, queries=queries, chunk=chunk)
    ranks = torch.arange(1, max_relevant + 1, device=labels.device)
    within_r = ranks <= relevant[:, None]  # (Q, max R)
    hits = (labels[neighbors] == labels[queries][:, None]) & within_r
    precision = hits.cumsum(dim=1) / ranks
    return RetrievalMetrics(
        recall_at_1=hits[:, 0].double().mean().item(),
        r_precision=(hits.sum(dim=1) / relevant).double().mean().item(),
        map_at_r=((precision * hits).sum(dim=1) / relevant).double().mean().item(),
    )
