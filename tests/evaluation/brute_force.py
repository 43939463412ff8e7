"""Every metric from the whole matrix of similarities and one sorted gallery per query."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Problem:
    """Queries, what is searched, and what is known of both."""

    def __init__(self, embeddings: Tensor, labels: Tensor, **given: Tensor | int | None) -> None:
        self.embeddings, self.labels = embeddings, labels
        self.given = given

    @property
    def kept(self) -> Tensor:
        """(N, M): the references that a query is compared with."""
        ref_labels = self.given.get("ref_labels")
        columns = self.labels if ref_labels is None else ref_labels
        kept = torch.ones(len(self.labels), len(columns), dtype=torch.bool)
        if ref_labels is None:
            kept.fill_diagonal_(False)
        cameras = self.given.get("cameras")
        if cameras is not None:
            ref_cameras = cameras if ref_labels is None else self.given["ref_cameras"]
            same = self.labels[:, None] == columns[None, :]
            kept &= ~(same & (cameras[:, None] == ref_cameras[None, :]))
        ignored = self.given.get("ignore_label")
        if ignored is not None:
            kept &= (self.labels != ignored)[:, None] & (columns != ignored)[None, :]
        return kept

    def similarity(self, normalize: bool = True) -> Tensor:
        columns = self.given.get("ref_emb")
        columns = self.embeddings if columns is None else columns
        sides = [each.double() for each in (self.embeddings, columns)]
        if normalize:
            sides = [F.normalize(each, dim=1, eps=1e-12) for each in sides]
        return sides[0] @ sides[1].T

    def ranks(self, ties: str = "pessimistic", normalize: bool = True) -> list[list[float]]:
        """Of each query the ranks of its positives."""
        ref_labels = self.given.get("ref_labels")
        columns = self.labels if ref_labels is None else ref_labels
        found = []
        for row, kept, label in zip(
            self.similarity(normalize), self.kept, self.labels.tolist(), strict=True
        ):
            positives = row[kept & (columns == label)].sort(descending=True).values
            others = row[kept & (columns != label)]
            at_least = [int((others >= each).sum()) for each in positives]
            above = [int((others > each).sum()) for each in positives]
            before = {
                "pessimistic": at_least,
                "optimistic": above,
                "mean": [(a + b) / 2 for a, b in zip(at_least, above, strict=True)],
            }[ties]
            found.append([place + 1 + each for place, each in enumerate(before)])
        return found


def metrics(ranks: list[list[float]], tops: tuple[int, ...]) -> dict[str, float]:
    """Means over the queries that have a positive."""
    each = [_of_query(of_query, tops) for of_query in ranks if of_query]
    return {name: math.fsum(found[name] for found in each) / len(each) for name in each[0]}


def _of_query(ranks: list[float], tops: tuple[int, ...]) -> dict[str, float]:
    number = len(ranks)
    precisions = [(place + 1) / rank for place, rank in enumerate(ranks)]
    first = [each for each, rank in zip(precisions, ranks, strict=True) if rank <= number]
    return {
        **{f"recall@{top}": float(ranks[0] <= top) for top in tops},
        "r_precision": len(first) / number,
        "map@r": sum(first) / number,
        "map": sum(precisions) / number,
        "mrr": 1 / ranks[0],
        "minp": number / ranks[-1],
    }
